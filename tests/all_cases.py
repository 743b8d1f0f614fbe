"""Every tiny network that the tests of groups, supernets, costs and calibration go through."""

import tricky
import tricky_layers
import tricky_more

ALL_CASES = [*tricky.CASES, *tricky_more.CASES, *tricky_layers.CASES]
