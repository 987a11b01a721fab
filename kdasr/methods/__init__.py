"""Ways to learn from a teacher beyond the basic losses of `kdasr.losses`: one file for each idea.

Each is a loss `(output, batch) -> scalar` (a function, or an nn.Module where it learns), or an online
teacher. A recipe names it; the training loop knows none of them.
"""
