"""How large the model is."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Every fifth layer sees all tokens, the others a window. The layers from `own` on borrow the keys and values of the last
    own layer of their kind, and have feed-forward layers twice as wide."""
    hidden: int
    heads: int  # of queries; one of keys
    sliding_head: int
    full_head: int
    window: int
    layers: int
    own: int
    inner: int  # of the feed-forward layers
    per_layer: int  # width of what each layer gets of each token beside the hidden state
    vocabulary: int
    positions: int
    accuracy: int = 4  # of MatMulNBits: 4 rounds what it multiplies to int8, 1 does not

    def is_full(self, layer):
        return layer % 5 == 4

    def is_own(self, layer):
        return layer < self.own

    def head(self, layer):
        return self.full_head if self.is_full(layer) else self.sliding_head

    def inner_of(self, layer):
        return self.inner if self.is_own(layer) else 2 * self.inner

    def source(self, layer):
        return max(own for own in range(self.own) if self.is_full(own) == self.is_full(layer))

    def cache_rows(self, layer, T, slack):
        """Rows of an own layer's cache that has room for T tokens; slack: of window-sized caches, None: whole ones."""
        return T if slack is None or self.is_full(layer) else self.window + slack

    def cache_bytes(self, T, slack, layers=None):
        """Of all own layers' keys and values in fp32, or of some layers'."""
        return sum(2 * 4 * self.head(i) * self.cache_rows(i, T, slack) for i in layers or range(self.own))

    def sliding(self):
        return [layer for layer in range(self.own) if not self.is_full(layer)]

    def weights(self):
        """Of one token's multiplications: in own layers, in borrowing ones, and of the logits."""
        def of(layer):
            projections = 2 * self.heads * self.head(layer) + (2 * self.head(layer) if self.is_own(layer) else 0)
            return self.hidden * (projections + 3 * self.inner_of(layer) + 2 * self.per_layer)

        every = [of(layer) for layer in range(self.layers)]
        return sum(every[:self.own]), sum(every[self.own:]), self.hidden * self.vocabulary

    def fast_prefill_bound(self, S):
        """How many times less there is to multiply by weights in a prompt of S tokens whose borrowing layers compute one."""
        own, borrowing, logits = self.weights()
        return (S * (own + borrowing) + logits) / (S * own + borrowing + logits)


E2B = Sizes(hidden=1536, heads=8, sliding_head=256, full_head=512, window=512, layers=35, own=15, inner=6144, per_layer=256,
            vocabulary=262144, positions=32768)
TINY = Sizes(hidden=64, heads=2, sliding_head=32, full_head=64, window=16, layers=10, own=5, inner=64, per_layer=32, vocabulary=96,
             positions=256, accuracy=1)
