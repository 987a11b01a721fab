"""Ways to learn from a teacher beyond the basic losses of `kdasr.losses`: one file for each idea.

Each is a loss `(output, batch) -> scalar` (a function, or an nn.Module if it learns), or an online
teacher. Recipes name them; the training loop does not depend on any.
"""
