"""The fast path of training: no work on padding, no logits but at labels, little kept for the backward pass.

Promises: the loss, its gradients and its counts are those of the plain path, which a check at the start of every run
holds it to (`check`); what a part doesn't know, it refuses with a reason, and the plain path does it. Model code isn't
forked: attention is exchanged through transformers' own interface, the head through the `forward` of one instance.
"""
