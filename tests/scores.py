"""An evaluator for tests of a search."""

import autoslim


class Table:
    """An evaluator that makes scores from the widths alone, and remembers what it was asked."""

    def __init__(self, error):
        self.error, self.asked = error, []

    def score(self, config):
        self.asked.append(tuple(config.widths.items()))
        error = self.error(config.widths)
        return autoslim.Score(error, 2 * error, 10)
