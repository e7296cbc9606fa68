import numpy as np

def sums(x: np.ndarray, w: np.ndarray, base: np.ndarray, stop: int, threads: int) -> list[tuple[float, float]]: ...
def squared_distances(a: np.ndarray, base: np.ndarray, start: int, stop: int, threads: int) -> list[float]: ...
def apply(x: np.ndarray, w: np.ndarray, base: np.ndarray, eta: float, start: int, stop: int, threads: int) -> None: ...
def reach(
    x: np.ndarray,
    w: np.ndarray,
    base: np.ndarray,
    v: np.ndarray,
    alpha: float,
    mu: float,
    follow: float,
    start: int,
    stop: int,
    threads: int,
) -> None: ...
def triad(a: np.ndarray, b: np.ndarray, c: np.ndarray, s: float, threads: int) -> None: ...
