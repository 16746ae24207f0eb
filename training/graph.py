"""Updates on a GPU, recorded once as a CUDA graph and replayed as one launch."""

from collections.abc import Callable, Sequence

import torch
from training.idql import IDQL, Info

# Updates made before the recording: libraries choose and prepare their kernels in them.
WARM_UP = 3


class GraphedUpdate:
    """`update`, recorded at its fourth call and replayed from then on.

    Every call is one update, the first ones too.
    """

    def __init__(
        self, idql: IDQL, update: Callable[[], Info], generators: Sequence[torch.Generator]
    ) -> None:
        """Record nothing yet.

        Args:
            idql: The learner, on a GPU.
            update: Draws and makes an update of it: `idql.learn`, not `idql.update`; whatever it
                reads and writes stays where it is in the GPU's memory.
            generators: What it draws from, on the GPU.
        """
        self._idql, self._update, self._generators = idql, update, generators
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._graph = torch.cuda.CUDAGraph()
        self._info: Info = {}
        idql.rate_on_device()

    def __call__(self) -> Info:
        """Make an update; what is returned is overwritten by the next one."""
        self._idql.begin_update()
        self._calls += 1
        if self._calls <= WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                info = self._update()
            torch.cuda.current_stream().wait_stream(self._stream)
            return info
        if self._calls == WARM_UP + 1:
            for generator in self._generators:
                self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph):
                self._info = self._update()
        self._graph.replay()
        return self._info
