// Per-target: the kernel of weights of int8 and int4 caches by digits (digits-inl.h): codes of V stay bytes, weights
// are cut into digits on a scale of each row's stretch of keys.
#if defined(KVSHARE_ATTENTION_WEIGHT_DIGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_WEIGHT_DIGITS_INL_H_
#undef KVSHARE_ATTENTION_WEIGHT_DIGITS_INL_H_
#else
#define KVSHARE_ATTENTION_WEIGHT_DIGITS_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "attention/digits-inl.h"
#include "attention/softmax-inl.h"
#include "attention/tile-inl.h"

#if KVSHARE_BYTE_DOTS
HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline constexpr int64_t kWeightStretch = 128;  // keys whose weights share a scale

struct OrOp {
  HWY_INLINE Vec operator()(Vec a, Vec b) const { return hn::Or(a, b); }
};

// Weights [count][R] as digits, [count / kQuad rounded up][R / kPass][kDigits][kPass] quads; `factors`
// [kStateLanes<R>] is what one of the last digit is worth: 0 where a row's weights are 0, NaN where one of them is.
template <int R>
inline void PackWeightDigits(const float* HWY_RESTRICT weights, int64_t count, int32_t* HWY_RESTRICT digits,
                             float* HWY_RESTRICT factors) {
  const F32 df;
  const I32 di;
  constexpr float kMost = (kSignedProducts ? 127 : 255) << 16;  // three digits can say a little more
  constexpr int kVectors = R * kQuad / kLanes;                  // of a quad of keys
  constexpr int kRowVecs = kRowVectors<R>;
  constexpr int kLastBlock = kRowVecs == 1 ? 1 : 0;  // of the last vector: rows 4 to 7
  const int64_t lanes = count * R;
  const auto load = [&](int64_t i) HWY_ATTR {
    return i + static_cast<int64_t>(kLanes) <= lanes ? hn::Load(df, weights + i)
                                                     : hn::LoadN(df, weights + i, std::max<int64_t>(lanes - i, 0));
  };
  Vec to_code[kRowVecs];
  for (int row = 0; row < kRowVecs; ++row) {
    Vec most = hn::Zero(df);
    Vec poison = hn::Zero(df);
    for (int64_t i = row * kLanes; i < lanes; i += kRowVecs * kLanes) {
      const Vec weight = load(i);
      most = hn::Max(most, weight);
      poison = hn::MulAdd(weight, hn::Zero(df), poison);
    }
    most = AcrossKeys<R>(most, MaxOp());
    poison = AcrossKeys<R>(poison, AddOp());
    hn::Store(hn::Add(hn::Div(most, hn::Set(df, kMost)), poison), df, factors + row * kLanes);
    to_code[row] = hn::IfThenZeroElse(hn::Eq(most, hn::Zero(df)), hn::Div(hn::Set(df, kMost), most));
  }
  for (int64_t i = 0; i < lanes; i += R * kQuad, digits += R * kDigits) {
    Sums code[kVectors];
    HWY_UNROLL(2)
    for (int v = 0; v < kVectors; ++v) code[v] = hn::NearestInt(hn::Mul(load(i + v * kLanes), to_code[v % kRowVecs]));
    HWY_UNROLL(3)
    for (int g = 0; g < kDigits; ++g) {
      Vec quads[kRowVecs];
      HWY_UNROLL(2)
      for (int row = 0; row < kRowVecs; ++row) quads[row] = hn::Zero(df);
      HWY_UNROLL(2)
      for (int v = 0; v < kVectors; ++v) {
        // Key k of the quad is its byte k.
        constexpr int kShift = R == 4 ? 2 : 3;
        const auto key = hn::Add(hn::ShiftRight<kShift>(hn::Iota(di, 0)), hn::Set(di, v * kLanes / R));
        const auto digit = hn::And(code[v], hn::Set(di, 0xFF));
        const auto quad = hn::BitCast(df, hn::Shl(digit, hn::ShiftLeft<3>(key)));
        quads[v % kRowVecs] = hn::Or(quads[v % kRowVecs], quad);
        // A signed digit is 256 less from 128 on.
        code[v] = hn::ShiftRight<8>(kSignedProducts ? hn::Add(code[v], hn::Set(di, 128)) : code[v]);
      }
      auto* to = reinterpret_cast<float*>(digits) + g * kPass;
      for (Vec& row : quads) row = AcrossKeys<R>(row, OrOp());
      hn::Store(BlockOf<0>(quads[0]), Quad(), to);
      if constexpr (R == 8) hn::Store(BlockOf<kLastBlock>(quads[kRowVecs - 1]), Quad(), to + kDigits * kPass);
    }
  }
}

// Two of the four vectors that a quad of rows of V gives, weighted, of kPass rows: [kPass][out_stride] in the order of
// the quads.
template <int R>
HWY_INLINE void WeightQuads(const int32_t* HWY_RESTRICT digits, const float* HWY_RESTRICT values, int64_t quads,
                            float* HWY_RESTRICT out, int64_t out_stride) {
  const F32 df;
  const I32 di;
  Sums sums[kDigits][kPass][2];
  HWY_UNROLL(3)
  for (int g = 0; g < kDigits; ++g) {
    HWY_UNROLL(4)
    for (int r = 0; r < kPass; ++r) sums[g][r][0] = sums[g][r][1] = hn::Zero(di);
  }
  for (int64_t quad = 0; quad < quads; ++quad, digits += R * kDigits, values += 4 * kLanes) {
    hn::Vec<I8> value[2];
    HWY_UNROLL(2)
    for (int c = 0; c < 2; ++c) value[c] = hn::BitCast(I8(), hn::Load(df, values + c * kLanes));
    HWY_UNROLL(3)
    for (int g = 0; g < kDigits; ++g) {
#if HWY_TARGET_IS_NEON
      const auto weights = hn::BitCast(I8(), hn::Load(di, digits + g * kPass));
      HWY_UNROLL(2)
      for (int c = 0; c < 2; ++c) {
        AddProductsOfLane<0>(value[c], weights, sums[g][0][c]);
        AddProductsOfLane<1>(value[c], weights, sums[g][1][c]);
        AddProductsOfLane<2>(value[c], weights, sums[g][2][c]);
        AddProductsOfLane<3>(value[c], weights, sums[g][3][c]);
      }
#else
      HWY_UNROLL(4)
      for (int r = 0; r < kPass; ++r) {
        const auto weight = hn::BitCast(I8(), hn::Set(di, digits[g * kPass + r]));
        HWY_UNROLL(2)
        for (int c = 0; c < 2; ++c) AddProducts(weight, value[c], sums[g][r][c]);
      }
#endif
    }
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kPass; ++r) {
    HWY_UNROLL(2)
    for (int c = 0; c < 2; ++c)
      hn::Store(SumOfDigits(sums[0][r][c], sums[1][r][c], sums[2][r][c]), df, out + r * out_stride + c * kLanes);
  }
}

// All rows of one strip of V. Not inline: g++ 12 unrolls no loop that lies eight deep.
template <int R>
KVSHARE_BYTE_DOTS_ATTR HWY_NOINLINE void WeightStripOfQuads(const int32_t* HWY_RESTRICT digits,
                                                            const float* HWY_RESTRICT values, int64_t quads,
                                                            float* HWY_RESTRICT out, int64_t out_stride) {
  for (int r = 0; r < R; r += kPass)
    for (int c = 0; c < 4; c += 2)
      WeightQuads<R>(digits + r * kDigits, values + c * kLanes, quads, out + r * out_stride + c * kLanes, out_stride);
}

// Channels [d, d + kQuadChannels) of `count` keys as quads of keys, [count / kQuad rounded up][4][kLanes]: vector i of
// a quad holds channels 4i to 4i + 3 of each 16. Those past head_size are 0; what keys past count hold does not matter.
template <typename T>
HWY_INLINE void PackValueQuads(typename Element<T>::Pointer values, int64_t stride, int64_t count, int64_t d,
                               int64_t head_size, const Fetch& fetch, float* HWY_RESTRICT packed) {
  const F32 df;
  const I8 d8;
  const hn::Repartition<int16_t, F32> d16;
  const size_t n = std::min(kQuadChannels, head_size - d);
  const bool opens_line = OpensLine<T>(d, kQuadChannels);
  for (int64_t j = 0; j < count; j += kQuad, packed += 4 * kLanes) {
    hn::Vec<I8> rows[kQuad];
    if (opens_line && fetch.Has(j, kQuad)) {
      const char* next = fetch.rows + j * fetch.stride_bytes + Element<T>::Bytes(d);
      HWY_UNROLL(4)
      for (int k = 0; k < kQuad; ++k, next += fetch.stride_bytes) PrefetchL2(next);
    }
    HWY_UNROLL(4)
    for (int k = 0; k < kQuad; ++k) {
      const auto row = values + std::min(j + k, count - 1) * stride;
      rows[k] = n == kQuadChannels ? LoadCodes(row + d) : LoadCodesN(row + d, n);
    }
    const auto lower01 = hn::BitCast(d16, hn::InterleaveLower(d8, rows[0], rows[1]));
    const auto upper01 = hn::BitCast(d16, hn::InterleaveUpper(d8, rows[0], rows[1]));
    const auto lower23 = hn::BitCast(d16, hn::InterleaveLower(d8, rows[2], rows[3]));
    const auto upper23 = hn::BitCast(d16, hn::InterleaveUpper(d8, rows[2], rows[3]));
    hn::Store(hn::BitCast(df, hn::InterleaveLower(d16, lower01, lower23)), df, packed);
    hn::Store(hn::BitCast(df, hn::InterleaveUpper(d16, lower01, lower23)), df, packed + kLanes);
    hn::Store(hn::BitCast(df, hn::InterleaveLower(d16, upper01, upper23)), df, packed + 2 * kLanes);
    hn::Store(hn::BitCast(df, hn::InterleaveUpper(d16, upper01, upper23)), df, packed + 3 * kLanes);
  }
}

// Whether a row's sum of weighted codes, in what one of the last digit is worth, is as right as that of f32: if it is
// so large that what rounding `count` weights costs it cannot be seen. A sink whose value is nothing makes it small.
template <typename T>
bool MayWeight(float largest, int64_t count) {
  return largest >= 3.5e4F * kMostCode<T> * std::sqrt(static_cast<float>(count));
}

// out += sums * factor, out times rescale first. `sums` as WeightQuads leaves them.
HWY_INLINE void AddSums(const float* HWY_RESTRICT sums, int64_t head_size, float factor, const float* rescale,
                        float* HWY_RESTRICT out) {
  const F32 df;
  for (int64_t d = 0; d < head_size; d += kQuadChannels) {
    Vec v[4];
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i) v[i] = hn::Load(df, sums + d + i * kLanes);
    TransposeBlocks(v);
    for (int64_t i = 0; i < 4 && d + i * static_cast<int64_t>(kLanes) < head_size; ++i) {
      Vec before = hn::Load(df, out + d + i * kLanes);
      if (rescale != nullptr) before = hn::Mul(before, hn::Set(df, *rescale));
      hn::Store(hn::MulAdd(v[i], hn::Set(df, factor), before), df, out + d + i * kLanes);
    }
  }
}

inline float LargestOf(const float* sums, int64_t count) {
  const F32 df;
  Vec most = hn::Zero(df);
  for (int64_t d = 0; d < count; d += kLanes) most = hn::Max(most, hn::Abs(hn::Load(df, sums + d)));
  return hn::ReduceMax(df, most);
}

// How a stretch's digits, [quads][R / kPass][kDigits][kPass], meet strips of V: by vectors.
template <int R>
class VectorStrips {
 public:
  VectorStrips(const int32_t* digits, int64_t quads) : digits_(digits), quads_(quads) {}
  void Weight(const float* HWY_RESTRICT values, float* HWY_RESTRICT out, int64_t out_stride) const {
    WeightStripOfQuads<R>(digits_, values, quads_, out, out_stride);
  }

 private:
  const int32_t* digits_;
  int64_t quads_;
};

// WeightTile of tile-inl.h.
template <typename T, int R, class Strips>
void WeightDigits(float* HWY_RESTRICT weights, const void* HWY_RESTRICT value_rows, int64_t stride, int64_t count,
                  int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                  int64_t out_stride) {
  if (head_size > kMostDigitChannels)  // only where the row is forced
    return WeightTile<Fma<T>, R, Reading::kTileAhead>(weights, value_rows, stride, count, head_size, fetch, rescale,
                                                      out, out_stride);
  const auto values = Element<T>::From(value_rows);
  const int64_t sum_stride = QuadVectors(head_size) * kQuadChannels;
  HWY_ALIGN float quads[kWeightStretch * kLanes];
  HWY_ALIGN int32_t digits[kWeightStretch / kQuad * R * kDigits + kLanes];  // the last lanes may be read
  HWY_ALIGN float factors[kStateLanes<R>];
  HWY_ALIGN float sums[R * kMostDigitChannels];
  for (int64_t begin = 0; begin < count; begin += kWeightStretch, rescale = nullptr) {
    const int64_t n = std::min(kWeightStretch, count - begin);
    const auto rows = values + begin * stride;
    const Fetch next = fetch.From(begin);
    PackWeightDigits<R>(weights + begin * R, n, digits, factors);
    const Strips strips(digits, (n + kQuad - 1) / kQuad);
    for (int64_t d = 0; d < head_size; d += kQuadChannels) {
      PackValueQuads<T>(rows, stride, n, d, head_size, next, quads);
      strips.Weight(quads, sums + d, sum_stride);
    }
    bool exact = true;
    for (int r = 0; r < R; ++r)
      exact = exact && (factors[r] == 0 || MayWeight<T>(LargestOf(sums + r * sum_stride, sum_stride), n));
    if (exact) {
      for (int r = 0; r < R; ++r)
        AddSums(sums + r * sum_stride, head_size, factors[r], rescale == nullptr ? nullptr : rescale + r,
                out + r * out_stride);
    } else {
      WeightTile<Fma<T>, R, Reading::kTileAhead>(weights + begin * R, Element<T>::Address(rows), stride, n, head_size,
                                                 Fetch{}, rescale, out, out_stride);
    }
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KVSHARE_BYTE_DOTS
#endif
