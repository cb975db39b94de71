"""MME: perception and cognition by pairs of yes/no questions (Fu et al. 2023, https://arxiv.org/abs/2306.13394)."""

from collections import defaultdict
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, percent

SUB_TASKS = dict(
    perception=(
        'existence',
        'count',
        'position',
        'color',
        'posters',
        'celebrity',
        'scene',
        'landmark',
        'artwork',
        'OCR',
    ),
    cognition=('commonsense_reasoning', 'numerical_calculation', 'text_translation', 'code_reasoning'),
)
_QUESTIONS = 2  # Per image: one with the answer yes and one with the answer no.


def read_first_letters(text: str) -> str | None:
    """MME's own rule: the *yes*, or else the *no*, among the first four letters, in any case.

    Returns:
        str, optional: ``'yes'``, ``'no'``, or None if there is neither.
    """
    start = text.strip().casefold()[:4]
    return next((word for word in ('yes', 'no') if word in start), None)


@METRICS.register_module()
class MMEMetric(BaseMetric):
    """Scores of MME: accuracy plus the share of images with two right answers.

    Fu et al. 2023, https://arxiv.org/abs/2306.13394.

    - ``mme/<sub-task>``: accuracy + accuracy plus, in percent points, 0 to 200; guessing gives 75 in the mean;
    - ``mme/<sub-task>/accuracy``: share of right answers, in percent. An unreadable one is wrong;
    - ``mme/<sub-task>/accuracy_plus``: share of images with two right answers, in percent;
    - ``mme/perception`` (ten sub-tasks, 0 to 2000) and ``mme/cognition`` (four, 0 to 800): sums of scores, given only
      if every sub-task was asked;
    - ``mme/unreadable``: share of answers that are neither *yes* nor *no*, in percent.

    Answers are read by their first four letters, as in MME's own script; only here, white space before them is removed.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``mme``.

    Raises:
        KeyError: If a sample lacks a field of :meth:`process`.
        ValueError: If a ``gt_answer`` is neither yes nor no, an image lacks its two questions, or there is no sample.
    """

    default_prefix = 'mme'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Read the answers of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_answer``
                (``'yes'`` or ``'no'``, in any case), ``category`` (str, the sub-task, as MME's folders are named) and
                ``image_id`` or ``img_path``.
        """
        for sample in data_samples:
            answer, truth, task = (
                get_field(sample, key, 'MMEMetric') for key in ('pred_answer', 'gt_answer', 'category')
            )
            image = get_field(sample, 'image_id' if 'image_id' in sample else 'img_path', 'MMEMetric')
            if str(truth).strip().casefold() not in ('yes', 'no'):
                raise ValueError(f"MMEMetric: gt_answer={truth!r} must be 'yes' or 'no'.")
            answer = read_first_letters(answer)
            right = answer == truth.strip().casefold()
            self.results.append(dict(task=task, image=str(image), right=right, unreadable=answer is None))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the scores over the samples of all processes.

        Args:
            results (list[dict]): ``task``, ``image``, ``right`` and ``unreadable`` of every sample.

        Returns:
            dict[str, float]: The scores of the sub-tasks, their parts, and the sums.
        """
        if not results:
            raise ValueError('MMEMetric: there is no answer to evaluate; is the dataset of the loader empty?')
        values: dict[str, float] = {}
        for task in sorted({row['task'] for row in results}):
            # The score is made per sub-task: their numbers of questions differ.
            accuracy, plus = _accuracies(task, [row for row in results if row['task'] == task])
            values |= {task: accuracy + plus, f'{task}/accuracy': accuracy, f'{task}/accuracy_plus': plus}
        for name, tasks in SUB_TASKS.items():
            if all(task in values for task in tasks):
                values[name] = sum(values[task] for task in tasks)
        return values | {'unreadable': percent([row['unreadable'] for row in results])}


def _accuracies(task: str, rows: Sequence[dict]) -> tuple[float, float]:
    images = defaultdict(list)
    for row in rows:
        images[row['image']].append(row['right'])
    for image, answers in images.items():
        if len(answers) != _QUESTIONS:
            raise ValueError(
                f'MMEMetric: image {image} of {task} has {len(answers)} questions; MME asks {_QUESTIONS} of each, and '
                'the score is made of pairs. Evaluate whole sub-tasks.'
            )
    return percent([row['right'] for row in rows]), percent([all(answers) for answers in images.values()])
