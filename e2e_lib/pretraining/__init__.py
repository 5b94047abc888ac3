"""Pretraining the parts of the `mini` profile from scratch on MiniChat (section 3.1.4 starts from pretrained parts; so do we).

``fit`` is the loop they share; ``language``, ``sight`` and ``drawing`` hold the recipes; ``parts`` puts the results together, measures them
and writes what ships. Every stage can be interrupted and goes on where it was. Nothing here sees a held-out triple except the scene
reader, which must judge them.
"""
