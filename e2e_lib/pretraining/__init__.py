"""Pretraining of the small parts on MiniChat from scratch: section 3.1.4 starts from pretrained parts.

``fit`` holds the training loop, ``tokenizers``, ``language``, ``vision`` and ``image`` the recipes; ``parts``
measures and writes what ships. Only the scene classifier, which must judge them, sees held-out triples.
"""
