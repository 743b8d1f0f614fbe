"""One rule an operation: from the layouts of its inputs to the layout of its output, tying and freezing on the way.

A rule is a function `(flow, node, module) -> layout`: `flow` answers what is known (`flow.layout(node)` gives one axis a
dimension), `node` is the operation in the traced graph, `module` the layer where the operation is one, else None. It
returns the layout of the output (a list of layouts where the output is several tensors), binds the axes of weights with
`flow.weight(node, module, name).bind(dim, axis)`, and raises `Frozen(why)` where it cannot follow the channels.
"""
