"""English text of any length for the prompts of ``moeray bench``, drawn from a seed."""

from random import Random
from typing import Final

SENTENCES: Final = tuple(
    sentence.split()
    for sentence in (
        "The harbour was quiet before sunrise, and only the ferry's engine could be heard.",
        "A good sorting algorithm moves each element no more often than it has to.",
        "In 1854 a careful map of one city district showed where the sick had drawn their water.",
        "Please compare the two proposals and say which of them you would choose, and why.",
        "Rye bread keeps longer than wheat bread because its crumb holds more water.",
        "When the pressure falls quickly, sailors expect wind within a few hours.",
        "The function returns a list of pairs, each with a name and the number of times it occurs.",
        "She wrote the first chapter in a week, and needed seven years for the second.",
        "Copper conducts heat well, so a cook feels a change of the flame at once.",
        "The committee met on Tuesday, agreed on the budget, and put off everything else.",
        "Light takes about eight minutes and twenty seconds from the sun to the earth.",
        "Most of the valley's orchards were planted by people who never saw them in full bloom.",
        "If a queue grows without a limit, the system behind it has already failed.",
        "The old map marks a well at the crossroads, but nobody in the village remembers it.",
        "Write down what you expect before you measure, or you will believe whatever you see.",
        "A violin's front is made of spruce, its back and sides of maple.",
        "The train to the coast leaves at 7:45 and stops at every station on the way.",
        "Two keys may share a bucket, so a lookup has to compare the keys themselves.",
        "Her grandmother's recipe asks for four eggs, a cup of sugar and a great deal of patience.",
        "Glaciers shape valleys slowly: a few centimetres a day, for ten thousand years.",
        "The contract says that either side may end it with three months' notice.",
        "He repaired clocks for forty years and was late for nearly everything.",
        "To solve the equation, bring all terms with x to the left and divide by their sum.",
        "Salt marshes take the force out of waves and give young fish a place to hide.",
        "The museum bought the painting in 1921 and learned its painter's name in 1987.",
        "Each packet carries a number, so the receiver can order them and ask for lost ones.",
        "Bees find their way back by the sun, also when clouds hide it.",
        "The first bridge stood for six winters; the second one still stands.",
        "Explain to a new colleague how the payment service decides when to try again.",
        "Nothing in the report was false, yet its readers came away with the wrong idea.",
        "A tide table for one port is of little use in the next.",
        "The children counted eleven swans, and the youngest insisted that there were twelve.",
    )
)


def passage(random: Random, words: int) -> str:
    """``words`` words of text. No two passages of one seed begin alike, so that none is found in a
    prefix cache by chance."""
    drawn = ["Notes", f"{random.randrange(10**9)}:"]
    while len(drawn) < words:
        drawn += random.choice(SENTENCES)
    return " ".join(drawn[: max(words, 2)])
