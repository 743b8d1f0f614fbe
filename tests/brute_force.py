"""The search that tries everything, to compare with."""

import autoslim


def brute_force(net, score, pick, targets, judge):
    """Descend by trying every one-step-narrower network, with nothing of the search but its rules."""
    table = autoslim.CostTable(net)
    widths = net.full().widths
    chosen, targets = [], sorted(targets, reverse=True)
    now = judge(widths)
    while True:
        macs = table.cost(widths).macs
        while targets and macs <= targets[0]:
            chosen.append((targets.pop(0), dict(widths), now))
        if not targets:
            return chosen
        tried = []
        for position, (name, width) in enumerate(widths.items()):
            narrower = [c for c in net.choices[name] if c < width]
            if not narrower:
                continue
            candidate = {**widths, name: narrower[-1]}
            judged, cost = judge(candidate), table.cost(candidate).macs
            value = getattr(judged, score)
            if pick == "drop-per-saving":
                value = (value - getattr(now, score)) / (macs - cost)
            tried.append(((value, cost, position), candidate, judged))
        _, widths, now = min(tried, key=lambda entry: entry[0])
