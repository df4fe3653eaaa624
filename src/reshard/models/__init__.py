"""Families of models as data: tensor names, layouts and parallel rules, compiled to patches before planning.

::

    families/*.yaml ──family_file──▶ Family ──expansion──▶ rows as patches ──compiling──▶ CompiledRules
                    └─parallel_rules──▶ NamingLayouts ──parallel_strategy──▶ Strategy

Where things go:

- *A family*: one file in ``families/``, and no code; ``docs/families/adding.md`` explains the format. ``family``
  has the values of a file, ``family_file`` parses and checks it, ``pattern`` parses names and axes. ``own_family``
  reads a file from outside the package.
- *An option or a size of a family*: the sections ``options`` and ``parameters`` of its file; ``settings`` gives
  them their values from ``config.json`` and from the request, ``inferring`` from names and shapes.
- *An operation*: what only moves elements is written in a row's axes, and ``expansion`` makes patches of it.
  Arithmetic is decided in ``compiling`` (casts) and ``block_scales``, a merge of adapters in ``lora`` and
  ``lora_config``; the planner turns it into a computation, and the engine's kernels carry it out. Adapters that stay
  adapters: ``carried_adapters``.
- *A parallel rule*: the section ``layouts`` of the family's file, read by ``parallel_rules``. A kind of parallelism is
  a field of ``parallel_config``, and ``parallel_strategy`` says what it does to a layout.
- *Confirming what names suggest*: ``concatenated_runs`` compares strategies with tensors of several parts,
  ``expected_shapes`` tensors with ``config.json``. ``docs/design/0027-decisions.md`` lists every such decision.
- *Finding out what a checkpoint is*: ``detecting``. What training keeps beside weights: ``training_names``.

Only the data file of the family in question is parsed. But for these files, everything here is values in, values out.
"""
