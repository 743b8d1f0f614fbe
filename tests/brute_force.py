"""The search that tries everything, to compare with."""

import autoslim


def brute_force(net, score, pick, targets, judge):
    """Descend by trying every narrower network of a step, with nothing of the search but its rules."""
    table = autoslim.CostTable(net)
    widths = net.full().widths
    full = table.cost(widths).macs
    chosen, targets = [], sorted(targets, reverse=True)
    now = judge(widths)
    while True:
        macs = table.cost(widths).macs
        while targets and macs <= targets[0]:
            chosen.append((targets.pop(0), dict(widths), now))
        if not targets:
            return chosen
        tried = []
        for wanted in (min(0.02, 0.5 / len(widths)) * full if pick == "equal-saving" else 0, 0):
            for position, (name, width) in enumerate(widths.items()):
                candidate, saved = dict(widths), -1
                for choice in reversed([c for c in net.choices[name] if c < width]):
                    if saved < wanted:
                        candidate[name] = choice
                        saved = macs - table.cost(candidate).macs
                if saved < wanted:
                    continue
                judged, cost = judge(candidate), macs - saved
                value = getattr(judged, score)
                if pick == "drop-per-saving":
                    value = (value - getattr(now, score)) / saved
                tried.append(((value, cost, position), candidate, judged))
            if tried:
                break
        _, widths, now = min(tried, key=lambda entry: entry[0])
