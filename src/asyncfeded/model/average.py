"""A running mean of the global model, which is then tested and saved in its place; clients train the global model itself."""

from torch import Tensor


class Average:
    """The mean of the versions x_1 to x_t of the global model, newer ones with more weight (Shamir 2013, arXiv 1212.1824).

        mean_t = mean_{t-1} + (a + 1) / (t + a) (x_t - mean_{t-1})

    So mean_1 is x_1, and the weights of old versions fall as a power of their age: the mean is over about the last
    1 / (a + 1) of all versions, however many there are. It takes the memory of one model, and one pass over it per version.

    Args:
        x: float32 (size,), the global model at the start. It is copied.
        a: see above.

    Attributes:
        mean: float32 (size,), parameters and statistics; of a slice of the model, where this rank has one.
    """

    def __init__(self, x: Tensor, a: float) -> None:
        self.mean, self._a, self.version = x.detach().clone(), a, 0

    def follow(self, x: Tensor, version: int) -> None:
        """Take a version in, unless that was done.

        Args:
            x: float32 (size,), the global model.
            version: t.
        """
        if version != self.version:
            self.mean.lerp_(x, (self._a + 1.0) / (version + self._a))
            self.version = version

    def restore(self, mean: Tensor, version: int) -> None:
        """Take the state of a checkpoint, whose version was taken in."""
        self.mean.copy_(mean)
        self.version = version
