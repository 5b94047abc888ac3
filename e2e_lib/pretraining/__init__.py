"""Pretraining of the small parts on MiniChat from scratch: section 3.1.4 starts from pretrained parts.

``fit`` holds the training loop, ``tokenizers``, ``language``, ``vision`` and ``image`` the recipes; ``parts``
puts the results together, measures them and writes what ships. Every stage can be interrupted and resumed. No
recipe sees a held-out triple except the scene classifier's, which must judge them.
"""
