// Per-target: AttentionCall::scores, for calls that want to see what the softmax is made of. A pass of its own over K:
// tiles of scores S[key][row] become rows of the scores' own tensor.
#if defined(KVSHARE_ATTENTION_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_SCORES_INL_H_
#undef KVSHARE_ATTENTION_SCORES_INL_H_
#else
#define KVSHARE_ATTENTION_SCORES_INL_H_
#endif

#include <algorithm>

#include "attention/kernel_code-inl.h"
#include "attention/load-inl.h"
#include "attention/mask-inl.h"
#include "attention/place-inl.h"
#include "attention/query-inl.h"
#include "attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Scores become weights that sum to 1 with the row's sink, or to 0 where no key is seen; `state` has taken in all keys.
template <int R>
inline void NormalizeTile(float* scores, int64_t lanes, const RowState& state) {
  const F32 df;
  constexpr int kVectors = kRowVectors<R>;
  for (int v = 0; v < kVectors; ++v) {
    const Vec max = hn::Load(df, state.max + v * kLanes);
    const Vec sum = hn::Load(df, state.sum + v * kLanes);
    const Vec shift = hn::IfThenZeroElse(hn::Eq(max, hn::Set(df, kHidden)), max);
    const Vec inverse = hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(df)), hn::Div(hn::Set(df, 1.0F), sum));
    for (int64_t i = v * kLanes; i < lanes; i += kVectors * kLanes)
      hn::Store(hn::Mul(Exp(hn::Sub(hn::Load(df, scores + i), shift)), inverse), df, scores + i);
  }
}

// Elements [index, index + count) of the tensor from one row of the tile, whose keys lie R apart.
template <int R>
inline void StoreTileRow(const float* scores, int64_t count, const MutableScoresView& out, int64_t index) {
  const hn::RebindToSigned<F32> di;
  const auto apart = hn::Mul(hn::Iota(di, 0), hn::Set(di, R));
  for (int64_t j = 0; j < count; j += kLanes)
    StoreAny(hn::GatherIndex(F32(), scores + j * R, apart), out.data, out.type, index + j,
             std::min<int64_t>(kLanes, count - j));
}

inline void FillScores(float value, int64_t count, const MutableScoresView& out, int64_t index) {
  for (int64_t j = 0; j < count; j += kLanes)
    StoreAny(hn::Set(F32(), value), out.data, out.type, index + j, std::min<int64_t>(kLanes, count - j));
}

// Where a row of scores begins in the call's output.
inline int64_t ScoresRow(const Job& job, const Place& place, const Row& row) {
  const AttentionCall& call = *job.call;
  return ((place.b * call.query.heads + row.head) * call.query.tokens + row.position) * call.scores.keys;
}

// The columns of keys that a row does not see: before its range and past it.
inline void FillUnseenScores(const Job& job, const Place& place, const Scratch& scratch) {
  const MutableScoresView& out = job.call->scores;
  const int64_t first_column = job.sequences[place.b].first_column;
  const float outside = out.stage == ScoreStage::kWeights ? 0.0F : out.outside;
  for (Row row = RowAt(job, place, 0); row.index < place.rows; row.Next(job, place)) {
    const int64_t i = row.State(job);
    const int64_t at = ScoresRow(job, place, row);
    const int64_t end = first_column + scratch.end[i];
    FillScores(outside, first_column + scratch.begin[i], out, at);
    FillScores(outside, out.keys - end, out, at + end);
  }
}

// The part of a tile's scores, `count` keys from `begin` on, that each row of a block sees.
template <int R>
void StoreTile(const Job& job, const Place& place, const Scratch& scratch, int64_t block, int64_t begin,
               int64_t count) {
  const MutableScoresView& out = job.call->scores;
  const int64_t end = std::min<int64_t>((block + 1) * R, place.rows);
  for (Row row = RowAt(job, place, block * R); row.index < end; row.Next(job, place)) {
    const int64_t i = row.State(job);
    const int64_t first = out.OfEveryKey() ? begin : std::max<int64_t>(begin, scratch.begin[i]);
    const int64_t last = out.OfEveryKey() ? begin + count : std::min<int64_t>(begin + count, scratch.end[i]);
    StoreTileRow<R>(scratch.scores + (first - begin) * R + row.lane, last - first, out,
                    ScoresRow(job, place, row) + job.sequences[place.b].first_column + first);
  }
}

// The scores of one item at the stage that the call asks for. A pass of its own over K, so that RunTiles need not know
// of it; weights take two, the first for the rows' sums. By PlanScores: no splits, as sums need all keys of a row.
template <int R>
void WriteScores(const Job& job, const Place& place, const Scratch& scratch) {
  const AttentionCall& call = *job.call;
  const MutableScoresView& out = call.scores;
  const bool weights = out.stage == ScoreStage::kWeights;
  HWY_ALIGN float rescale[kStateLanes<R>];
  KeyRange range{0, static_cast<int32_t>(out.keys)};
  if (!out.OfEveryKey()) {
    range = RowsUnion(job, place, scratch);
    FillUnseenScores(job, place, scratch);
  }
  for (int64_t block = 0; block < job.plan.blocks(); ++block) PackQueries(job, place, scratch, block);
  for (const bool store : {false, true}) {
    if (!store && !weights) continue;
    for (int64_t tile = range.begin; tile < range.end; tile += job.plan.key_tile) {
      for (int64_t block = 0; block < job.plan.blocks(); ++block) {
        const BlockRange seen = RangeOf(scratch, kStateLanes<R>, block, std::min<int64_t>(R, place.rows - block * R));
        const int64_t begin = out.OfEveryKey() ? tile : std::max<int64_t>(tile, seen.lo);
        const int64_t end = out.OfEveryKey() ? range.end : std::min(range.end, seen.hi);
        const int64_t count = std::min<int64_t>(tile + job.plan.key_tile, end) - begin;
        if (count <= 0) continue;
        const int64_t lanes = RoundUp(count * R, kLanes);
        ScoreCode(job, scratch, block)(scratch.query + block * R * KeyStride(job), RowsOf(call.key, place, begin),
                                       call.key.token_stride, count, call.key.head_size, Fetch{}, nullptr,
                                       scratch.scores);
        if (!out.OfEveryKey())
          MaskTile<R>(job, place, scratch, block, seen, begin, count);
        else if (out.stage == ScoreStage::kSoftcapped && call.spec.softcap > 0)
          SoftcapTile(scratch.scores, lanes, call.spec.softcap);
        if (!store) {
          UpdateSoftmax<R>(scratch.scores, lanes, StateOf<R>(scratch, block), rescale);
          continue;
        }
        if (weights) NormalizeTile<R>(scratch.scores, lanes, StateOf<R>(scratch, block));
        StoreTile<R>(job, place, scratch, block, begin, count);
      }
    }
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
