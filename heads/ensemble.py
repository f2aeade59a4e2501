"""ensemble: ten linear classifiers of one embedding, trained as one mixture."""

from jaxtyping import Float
from torch import Tensor, nn

from askance.heads.head import Batch, Setup
from askance.heads.softmax import MixtureHead, jensen_shannon, mixture_loss


class Ensemble(MixtureHead):
    """The entropy of the mean softmax of ten linear classifiers.

    H(q) with q = mean_s softmax(W_s f + b_s), trained on one cross-entropy of q, not on ten. The
    members are fresh and random, as published: started from the upstream classifier, all would
    be, and stay, the same.

    Source: the shallow ensemble of URL, arXiv 2307.03810, on a frozen backbone.
    """

    in_bfloat16 = True
    MEMBERS = 10

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.held = self.MEMBERS * len(setup.bias)
        self.members = nn.Linear(setup.dim, self.held)

    def logits(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "s n c"]:
        """Return each member's logits."""
        return self.members(embedding.detach()).unflatten(1, (self.MEMBERS, -1)).movedim(1, 0)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy of the mean softmax, with smoothed labels."""
        return mixture_loss(self.logits(batch.embedding), batch.column)


class EnsembleJsd(Ensemble):
    """The Jensen-Shannon divergence of the members: H(q) - mean_s H(p_s), from 0 to ln 10.

    It means nothing before the random start is forgotten: until then, what members disagree most
    on is the longest embeddings, however clear they are.
    """

    twin = "ensemble"

    def scalar(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the divergence of a few rows, in nats."""
        return jensen_shannon(self.logits(embedding))
