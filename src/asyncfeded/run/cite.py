"""`asyncfeded cite` names what a run is made from, as BibTeX: the program, its rule, its data, their split and the model."""

from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from asyncfeded.config import Config, load_config


class Reference(NamedTuple):
    """Something to cite."""

    title: str
    authors: str
    year: int
    place: str = ""
    """Where it was published, if it was."""
    arxiv: str = ""
    doi: str = ""


REFERENCES = {
    "wang2022asyncfeded": Reference(
        "AsyncFedED: Asynchronous Federated Learning with Euclidean Distance based Adaptive Weight Aggregation",
        "Wang, Qiyuan and Yang, Qianqian and He, Shibo and Shi, Zhiguo and Chen, Jiming",
        2022,
        arxiv="2205.13797",
    ),
    "wilhelm2026staleness": Reference(
        "Revisiting Gradient Staleness: Evaluating Distance Metrics for Asynchronous Federated Learning Aggregation",
        "Wilhelm, Patrick and Kao, Odej",
        2026,
        arxiv="2603.08211",
    ),
    "mcmahan2017fedavg": Reference(
        "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        'McMahan, Brendan and Moore, Eider and Ramage, Daniel and Hampson, Seth and Ag{\\"u}era y Arcas, Blaise',
        2017,
        "AISTATS",
        "1602.05629",
    ),
    "li2020fedprox": Reference(
        "Federated Optimization in Heterogeneous Networks",
        "Li, Tian and Sahu, Anit Kumar and Zaheer, Manzil and Sanjabi, Maziar and Talwalkar, Ameet and Smith, Virginia",
        2020,
        "MLSys",
        "1812.06127",
    ),
    "xie2019fedasync": Reference(
        "Asynchronous Federated Optimization", "Xie, Cong and Koyejo, Sanmi and Gupta, Indranil", 2019, arxiv="1903.03934"
    ),
    "nguyen2022fedbuff": Reference(
        "Federated Learning with Buffered Asynchronous Aggregation",
        "Nguyen, John and Malik, Kshitiz and Zhan, Hongyuan and Yousefpour, Ashkan and Rabbat, Michael and Malek, Mani and "
        "Huba, Dzmitry",
        2022,
        "AISTATS",
        "2106.06639",
    ),
    "koloskova2022sharper": Reference(
        "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and Federated Learning",
        "Koloskova, Anastasia and Stich, Sebastian U. and Jaggi, Martin",
        2022,
        "NeurIPS",
        "2206.08307",
    ),
    "mishchenko2022delays": Reference(
        "Asynchronous SGD Beats Minibatch SGD Under Arbitrary Delays",
        "Mishchenko, Konstantin and Bach, Francis and Even, Mathieu and Woodworth, Blake",
        2022,
        "NeurIPS",
        "2206.07638",
    ),
    "iakovidou2024area": Reference(
        "Asynchronous Federated Stochastic Optimization for Heterogeneous Objectives Under Arbitrary Delays",
        "Iakovidou, Charikleia and Kim, Kibaek",
        2024,
        arxiv="2405.10123",
    ),
    "wang2024ca2fl": Reference(
        "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update Calibration",
        "Wang, Yujia and Cao, Yuanpu and Wu, Jingcheng and Chen, Ruoyu and Chen, Jinghui",
        2024,
        "ICLR",
    ),
    "wang2024fadas": Reference(
        "FADAS: Towards Federated Adaptive Asynchronous Optimization",
        "Wang, Yujia and Wang, Shiqiang and Lu, Songtao and Chen, Jinghui",
        2024,
        "ICML",
        "2407.18365",
    ),
    "chang2025ace": Reference(
        "Mitigating Participation Imbalance Bias in Asynchronous Federated Learning",
        "Chang, Xiangyu and Yao, Manyi and Krishnamurthy, Srikanth V. and Shelton, Christian R. and Chakraborty, Anirban "
        "and Swami, Ananthram and Oymak, Samet and Roy-Chowdhury, Amit",
        2025,
        arxiv="2511.19066",
    ),
    "liu2024nesterov": Reference(
        "Asynchronous Local-SGD Training for Language Modeling",
        "Liu, Bo and Chhaparia, Rachita and Douillard, Arthur and Kale, Satyen and Rusu, Andrei A. and Shen, Jiajun and "
        "Szlam, Arthur and Ranzato, Marc'Aurelio",
        2024,
        arxiv="2401.09135",
    ),
    "hsu2019dirichlet": Reference(
        "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
        "Hsu, Tzu-Ming Harry and Qi, Hang and Brown, Matthew",
        2019,
        arxiv="1909.06335",
    ),
    "reddi2021adaptive": Reference(
        "Adaptive Federated Optimization",
        "Reddi, Sashank J. and Charles, Zachary and Zaheer, Manzil and Garrett, Zachary and Rush, Keith and "
        "Kone{\\v{c}}n{\\'y}, Jakub and Kumar, Sanjiv and McMahan, H. Brendan",
        2021,
        "ICLR",
        "2003.00295",
    ),
    "chai2021fedat": Reference(
        "FedAT: A High-Performance and Communication-Efficient Federated Learning System with Asynchronous Tiers",
        "Chai, Zheng and Chen, Yujing and Anwar, Ali and Zhao, Liang and Cheng, Yue and Rangwala, Huzefa",
        2021,
        "SC",
        "2010.05958",
    ),
    "maranjyan2025ringmaster": Reference(
        "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time Complexity",
        "Maranjyan, Artavazd and Tyurin, Alexander and Richt{\\'a}rik, Peter",
        2025,
        "ICML",
        "2501.16168",
    ),
    "maranjyan2025ringleader": Reference(
        "Ringleader ASGD: The First Asynchronous SGD with Optimal Time Complexity under Data Heterogeneity",
        "Maranjyan, Artavazd and Richt{\\'a}rik, Peter",
        2025,
        arxiv="2509.22860",
    ),
    "alpaydin1998digits": Reference(
        "Optical Recognition of Handwritten Digits",
        "Alpaydin, Ethem and Kaynak, Cenk",
        1998,
        "UCI Machine Learning Repository",
        doi="10.24432/C50P49",
    ),
    "cohen2017emnist": Reference(
        "EMNIST: an extension of MNIST to handwritten letters",
        "Cohen, Gregory and Afshar, Saeed and Tapson, Jonathan and van Schaik, Andr{\\'e}",
        2017,
        arxiv="1702.05373",
    ),
    "caldas2018leaf": Reference(
        "LEAF: A Benchmark for Federated Settings",
        "Caldas, Sebastian and Duddu, Sai Meher Karthik and Wu, Peter and Li, Tian and Kone{\\v{c}}n{\\'y}, Jakub and "
        "McMahan, H. Brendan and Smith, Virginia and Talwalkar, Ameet",
        2018,
        arxiv="1812.01097",
    ),
    "he2016resnet": Reference(
        "Deep Residual Learning for Image Recognition",
        "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
        2016,
        "CVPR",
        "1512.03385",
    ),
    "radford2019gpt": Reference(
        "Language Models are Unsupervised Multitask Learners",
        "Radford, Alec and Wu, Jeffrey and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya",
        2019,
        "OpenAI",
    ),
}
"""By the key of BibTeX."""

USED: dict[str, dict[str, tuple[str, ...]]] = {
    "rule.name": {
        "asyncfeded": ("wang2022asyncfeded",),
        "fedavg": ("mcmahan2017fedavg",),
        "fedprox": ("li2020fedprox",),
        "fedasync": ("xie2019fedasync",),
        "fedbuff": ("nguyen2022fedbuff",),
        "delay_adaptive": ("koloskova2022sharper", "mishchenko2022delays"),
        "area": ("iakovidou2024area",),
        "ca2fl": ("wang2024ca2fl",),
        "fadas": ("wang2024fadas",),
        "ace": ("chang2025ace",),
        "delayed_nesterov": ("liu2024nesterov",),
        "reach": (),  # it is of the program
        "fedavgm": ("hsu2019dirichlet",),
        "fedadam": ("reddi2021adaptive",),
        "fedat": ("chai2021fedat",),
        "ringmaster": ("maranjyan2025ringmaster",),
        "ringleader": ("maranjyan2025ringleader",),
    },
    "rule.distance": dict.fromkeys(("l1", "linf", "cosine", "squared_l2", "mahalanobis"), ("wilhelm2026staleness",)),
    "task.name": {
        "synthetic": ("li2020fedprox",),
        "digits": ("alpaydin1998digits",),
        "femnist": ("caldas2018leaf", "cohen2017emnist"),
        "shakespeare": ("caldas2018leaf", "mcmahan2017fedavg"),
        "language": ("radford2019gpt",),
    },
    "task.split": {"dirichlet": ("hsu2019dirichlet",)},
    "task.model": {"resnet": ("he2016resnet",)},
}
"""By a key of the config and its value: what it is made from."""
PROGRAM = """% the program
@software{{asyncfeded,
  title = {{{{asyncfeded}}}},
  author = {{{{The asyncfeded authors}}}},
  version = {{{version}}}
}}"""
OWN_DATA = ("federated_h5", "images", "language", "tabular")
"""Tasks whose data a user brings."""


def cite(run_dir: Path) -> str:
    """What a run used, as BibTeX, with a comment above each entry.

    Raises:
        ValueError: there is no config of a run in the folder.
    """
    return bibliography(load_config(run_dir / "config.toml", []))


def bibliography(config: Config) -> str:
    """The same of a config that is resolved."""
    reasons: dict[str, list[str]] = {}
    for name, values in USED.items():
        section, key = name.split(".")
        value = getattr(config, section).get(key)
        for found in values.get(value, ()):
            reasons.setdefault(found, []).append(f"{name} = {value}")
    entries = [f"% {', '.join(why)}\n{_entry(key, REFERENCES[key])}" for key, why in reasons.items()]
    rule, task = config.rule["name"], config.task["name"]
    yours = [f"% rule.name = {rule}: cite what you made it from"] * (rule not in USED["rule.name"])
    yours += [f"% task.name = {task}: cite those who made its data"] * (task in OWN_DATA or task not in USED["task.name"])
    return "\n\n".join([PROGRAM.format(version=version("asyncfeded")), *entries, *yours])


def _entry(key: str, found: Reference) -> str:
    fields = {"title": f"{{{found.title}}}", "author": found.authors, "year": str(found.year), "howpublished": found.place}
    fields |= {"eprint": found.arxiv, "archivePrefix": "arXiv" if found.arxiv else "", "doi": found.doi}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@misc{{{key},\n{lines}\n}}"
