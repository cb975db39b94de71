"""A test loop of one model over several benchmarks, each with its own data loader and evaluator."""

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, TestLoop


@LOOPS.register_module()
class BenchmarkLoop(BaseLoop):
    """Tests a model on several benchmarks, one after the other.

    All loaders and evaluators are built first, so that a mistake in the last one shows before the first one runs. Hooks
    see the loader and the evaluator of the benchmark that runs.

    Args:
        runner (Runner): The runner.
        dataloader (dict[str, dict]): The configs of the loaders, by the benchmarks' names.
        evaluator (dict[str, dict | list]): The configs of the evaluators, by the same names.
        fp16 (bool): Whether to test with automatic mixed precision. Defaults to False.

    Examples:
        >>> test_dataloader = dict(pope=dict(...), vqav2=dict(...))
        >>> test_evaluator = dict(pope=dict(type='POPEMetric'), vqav2=dict(type='VQAv2Accuracy'))
        >>> test_cfg = dict(type='BenchmarkLoop')
    """

    def __init__(
        self, runner, dataloader: dict[str, dict], evaluator: dict[str, dict | list], fp16: bool = False
    ) -> None:
        self.loops = {name: TestLoop(runner, loader, evaluator[name], fp16) for name, loader in dataloader.items()}
        super().__init__(runner, None)  # A loop has one loader; `run` sets that of each benchmark.

    def run(self) -> dict[str, dict]:
        """Test on all benchmarks.

        Returns:
            dict[str, dict]: ``samples`` (int) and ``metrics`` (dict) of every benchmark.
        """
        results = {}
        for name, loop in self.loops.items():
            self.dataloader, self.evaluator = loop.dataloader, loop.evaluator
            results[name] = dict(samples=len(loop.dataloader.dataset), metrics=loop.run())
        return results
