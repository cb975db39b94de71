"""A closed world of questions without images: sums, orders and prices, which a language model must know by heart."""

from itertools import product

from .shapes_scene import COLORS, SHAPES

SUM = 'What is {} + {}?'
AFTER = 'What comes after {}?'
BEFORE = 'What comes before {}?'
PRICE = 'How much is a {} {}?'
DIGITS = range(10)


def shapes_facts() -> list[tuple[str, str, str]]:
    """All 160 facts: kind (``sum``, ``after``, ``before`` or ``price``), question, answer.

    The sums of two digits (100), what follows and precedes a colour or a shape in a closed round (12 each), and a
    price of two digits for each pair of colour and shape (36), no two alike.
    """
    facts = [('sum', SUM.format(a, b), str(a + b)) for a, b in product(DIGITS, DIGITS)]
    for words in (COLORS, SHAPES):
        for word, following in zip(words, (*words[1:], words[0]), strict=True):
            facts += [('after', AFTER.format(word), following), ('before', BEFORE.format(following), word)]
    pairs = enumerate(product(COLORS, SHAPES))
    # 37 and 90 have no common factor, so the prices, 10 to 99, are all different and in no visible order.
    return facts + [('price', PRICE.format(*pair), str(10 + 37 * i % 90)) for i, pair in pairs]
