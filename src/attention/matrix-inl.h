// Per-target: the kernels of digits (digits-inl.h, weight_digits-inl.h) where the CPU multiplies matrices of bytes
// (Intel's AMX). The integers are the same, and so are the bits of the result; K needs no transposition, and 16 rows
// meet 16 keys in 16 cycles.
//
// A matrix register has 16 rows of 64 bytes. A product adds to 16 x 16 sums what 16 rows of 64 bytes give with 16 rows
// of 16 quads: row i times quad k of column j, for all k.
#if defined(KVSHARE_ATTENTION_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_MATRIX_INL_H_
#undef KVSHARE_ATTENTION_MATRIX_INL_H_
#else
#define KVSHARE_ATTENTION_MATRIX_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "attention/weight_digits-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Makes the registers ready for a unit of work, if it is going to use them, and gives them back: a thread that keeps
// them pays for them whenever it is switched.
class MatrixRegisters {
 public:
#if KVSHARE_MATRIX_PRODUCTS
  explicit MatrixRegisters(bool used) : used_(used) {
    if (!used_) return;
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shapes;
    static_assert(sizeof(shapes) == 64);
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
  }
  ~MatrixRegisters() {
    if (used_) __asm__ volatile("tilerelease");
  }
  MatrixRegisters(const MatrixRegisters&) = delete;
  MatrixRegisters& operator=(const MatrixRegisters&) = delete;

 private:
  bool used_;
#else
  explicit MatrixRegisters(bool /*used*/) {}
#endif
};

#if KVSHARE_MATRIX_PRODUCTS

inline constexpr int64_t kMatrixRows = 16;  // and quads of a row
inline constexpr int64_t kMatrixInts = kMatrixRows * kMatrixRows;

template <int kRegister>
HWY_INLINE void ZeroMatrix() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}
// 16 rows of 64 bytes, `stride` bytes apart.
template <int kRegister>
HWY_INLINE void LoadMatrix(const void* rows, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
HWY_INLINE void StoreMatrix(int32_t* rows, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kRegister) : "memory");
}
// sums += rows times columns, all signed bytes.
template <int kSums, int kRows, int kColumns>
HWY_INLINE void AddSignedMatrices() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kRows), "i"(kColumns));
}
// The same with rows of unsigned bytes.
template <int kSums, int kRows, int kColumns>
HWY_INLINE void AddUnsignedMatrices() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kRows), "i"(kColumns));
}

// Matrices that the digits of R rows fill: columns of queries, or rows of weights.
template <int R>
inline constexpr int kDigitMatrices = R / kPass;

// load(row) is 16 lanes of row 0 to 15; lane i of row k becomes lane k of row i of `columns`.
template <class Load>
HWY_INLINE void TransposeMatrix(const Load& load, int32_t* HWY_RESTRICT columns) {
  Vec quads[4][4];
  HWY_UNROLL(4)
  for (int g = 0; g < 4; ++g) TransposeQuads(load(4 * g), load(4 * g + 1), load(4 * g + 2), load(4 * g + 3), quads[g]);
  StoreColumns(quads, kMatrixRows, reinterpret_cast<float*>(columns));
}

// Queries that PackQueryDigits packed as columns, [QuadVectors][kDigitMatrices<R>]: column (digit, row), the first 16
// in the first matrix.
template <int R>
void PackQueryColumns(const float* HWY_RESTRICT query, int64_t vectors, int32_t* HWY_RESTRICT columns) {
  const F32 df;
  for (int64_t vector = 0; vector < vectors; ++vector)
    for (int m = 0; m < kDigitMatrices<R>; ++m, columns += kMatrixInts)
      TransposeMatrix(
          [&](int column) HWY_ATTR {
            const int at = m * static_cast<int>(kMatrixRows) + column;
            return at < kDigits * R ? hn::Load(df, query + ((at / R * vectors + vector) * R + at % R) * kLanes)
                                    : hn::Zero(df);
          },
          columns);
}

// Whether codes are bytes where they lie.
template <typename T>
inline constexpr bool kAreBytes = std::is_same_v<T, int8_t>;

// Codes of 16 rows as bytes: where they lie, or made of int4 pairs in `bytes`.
template <typename T>
HWY_INLINE const int8_t* CodeRows(typename Element<T>::Pointer rows, int64_t stride, int64_t head_size, int8_t* bytes) {
  if constexpr (kAreBytes<T>) {
    return rows;
  } else {
    for (int64_t k = 0; k < kMatrixRows; ++k)
      for (int64_t d = 0; d < head_size; d += kQuadChannels)
        hn::StoreU(LoadCodes(rows + k * stride + d), I8(), bytes + k * head_size + d);
    return bytes;
  }
}

// Sums of 16 keys with columns (digit, row), a matrix after the other, become scores [16][R].
template <int R>
HWY_INLINE void StoreMatrixScores(const int32_t* HWY_RESTRICT sums, const float* HWY_RESTRICT factors,
                                  float* HWY_RESTRICT scores) {
  const I32 di;
  const F32 df;
  constexpr int64_t kKeys = kLanes / R;  // of a vector of scores
  const Vec factor = hn::Load(df, factors);
  for (int64_t key = 0; key < kMatrixRows; key += kKeys, sums += kKeys * kMatrixRows, scores += kLanes) {
    Sums low, middle, high;
    if constexpr (R == 8) {
      const int32_t* const third = sums + kMatrixInts;
      const auto first = hn::Load(di, sums), second = hn::Load(di, sums + kMatrixRows);
      low = hn::ConcatLowerLower(di, second, first);
      middle = hn::ConcatUpperUpper(di, second, first);
      high = hn::ConcatLowerLower(di, hn::Load(di, third + kMatrixRows), hn::Load(di, third));
    } else {
      Vec keys[4];
      for (int k = 0; k < 4; ++k) keys[k] = hn::BitCast(df, hn::Load(di, sums + k * kMatrixRows));
      TransposeBlocks(keys);
      low = hn::BitCast(di, keys[0]);
      middle = hn::BitCast(di, keys[1]);
      high = hn::BitCast(di, keys[2]);
    }
    hn::Store(hn::Mul(SumOfDigits(low, middle, high), factor), df, scores);
  }
}

// Prefetches while 16 keys are scored: the rows that a Fetch has for them, into L2, and later keys, into L1. It takes a
// line of each row at a time, so that the memory works while matrices are multiplied.
template <typename T>
class MatrixFetch {
 public:
  // For the keys [j, j + 16) of `count`.
  MatrixFetch(typename Element<T>::Pointer keys, int64_t stride, int64_t head_size, int64_t count, const Fetch& fetch,
              int64_t j)
      : keys_(static_cast<const char*>(Element<T>::Address(keys + j * stride))), stride_(Element<T>::Bytes(stride)) {
    const int64_t later =
        kMatrixRows * std::max<int64_t>(1, kKeyLinesAhead * kLine / Element<T>::Bytes(kMatrixRows * head_size));
    const bool has = fetch.Has(j, kMatrixRows);
    next_ = has ? fetch.rows + j * fetch.stride_bytes : keys_;
    next_stride_ = has ? fetch.stride_bytes : stride_;
    if (j + later + kMatrixRows <= count) keys_ += later * stride_;
  }
  // The lines at channel d.
  HWY_INLINE void Bring(int64_t d) const {
    if (!OpensLine<T>(d, kQuadChannels)) return;
    const char* next = next_ + Element<T>::Bytes(d);
    const char* key = keys_ + Element<T>::Bytes(d);
    HWY_UNROLL(16)
    for (int64_t k = 0; k < kMatrixRows; ++k, next += next_stride_, key += stride_) {
      PrefetchL2(next);
      PrefetchL1(key);
    }
  }

 private:
  static constexpr int64_t kKeyLinesAhead = 64;

  const char* keys_;
  int64_t stride_;
  const char* next_;
  int64_t next_stride_;
};

// ScoreDigits, 16 keys at a time. What is left of keys that do not fill a matrix, and of channels that do not, is
// scored by vectors.
template <typename T, int R>
void ScoreDigitsByMatrix(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows, int64_t stride,
                         int64_t count, int64_t head_size, const Fetch& fetch, const float* factors,
                         float* HWY_RESTRICT scores) {
  constexpr int kMatrices = kDigitMatrices<R>;
  const auto keys = Element<T>::From(key_rows);
  const int64_t vectors = head_size / kQuadChannels;
  const int64_t whole = head_size % kQuadChannels == 0 ? count / kMatrixRows * kMatrixRows : 0;
  HWY_ALIGN int32_t columns[kMostDigitChannels / kQuadChannels * kMatrices * kMatrixInts];
  HWY_ALIGN int32_t sums[kMatrices * kMatrixInts];
  HWY_ALIGN int8_t bytes[kAreBytes<T> ? 1 : kMatrixRows * kMostDigitChannels];
  const int64_t code_stride = kAreBytes<T> ? stride : head_size;
  if (whole > 0) PackQueryColumns<R>(query, vectors, columns);
  for (int64_t j = 0; j < whole; j += kMatrixRows) {
    const MatrixFetch<T> ahead(keys, stride, head_size, count, fetch, j);
    const int8_t* const codes = CodeRows<T>(keys + j * stride, stride, head_size, bytes);
    ZeroMatrix<0>();
    if constexpr (kMatrices == 2) ZeroMatrix<1>();
    for (int64_t vector = 0; vector < vectors; ++vector) {
      ahead.Bring(vector * kQuadChannels);
      LoadMatrix<2>(codes + vector * kQuadChannels, code_stride);
      LoadMatrix<3>(columns + vector * kMatrices * kMatrixInts, kQuadChannels);
      AddSignedMatrices<0, 2, 3>();
      if constexpr (kMatrices == 2) {
        LoadMatrix<4>(columns + (vector * kMatrices + 1) * kMatrixInts, kQuadChannels);
        AddSignedMatrices<1, 2, 4>();
      }
    }
    StoreMatrix<0>(sums, kQuadChannels);
    if constexpr (kMatrices == 2) StoreMatrix<1>(sums + kMatrixInts, kQuadChannels);
    StoreMatrixScores<R>(sums, factors, scores + j * R);
  }
  if (whole < count)
    ScoreDigits<T, R>(query, Element<T>::Address(keys + whole * stride), stride, count - whole, head_size,
                      fetch.From(whole), factors, scores + whole * R);
}

// Weights of one stretch against strips of V (VectorStrips of weight_digits-inl.h), as rows (digit, row of a pass).
template <int R>
class MatrixStrips {
 public:
  MatrixStrips(int32_t* digits, int64_t quads) : blocks_((quads + kMatrixRows - 1) / kMatrixRows) {
    const F32 df;
    constexpr int64_t kWidth = R * kDigits;
    std::fill(digits + quads * kWidth, digits + blocks_ * kMatrixRows * kWidth, 0);
    for (int64_t block = 0; block < blocks_; ++block)
      for (int m = 0; m < kDigitMatrices<R>; ++m)
        TransposeMatrix(
            [&](int quad) HWY_ATTR {
              // The last four lanes are of the next pass or quad, and make sums that nothing reads.
              const auto* row = digits + (block * kMatrixRows + quad) * kWidth + m * kDigits * kPass;
              return hn::LoadU(df, reinterpret_cast<const float*>(row));
            },
            rows_ + (m * kMostBlocks + block) * kMatrixInts);
  }

  void Weight(const float* HWY_RESTRICT values, float* HWY_RESTRICT out, int64_t out_stride) const {
    for (int64_t c = 0; c < 4; c += 2) WeightTwo(values + c * kLanes, out + c * kLanes, out_stride);
  }

 private:
  static constexpr int64_t kMostBlocks = kWeightStretch / kQuadChannels;

  // Two of the four vectors that a quad of rows of V gives.
  void WeightTwo(const float* HWY_RESTRICT values, float* HWY_RESTRICT out, int64_t out_stride) const {
    constexpr int kMatrices = kDigitMatrices<R>;
    constexpr int64_t kStride = 4 * kQuadChannels;  // bytes of a quad of V
    ZeroMatrix<0>();
    ZeroMatrix<1>();
    if constexpr (kMatrices == 2) {
      ZeroMatrix<2>();
      ZeroMatrix<3>();
    }
    for (int64_t block = 0; block < blocks_; ++block, values += 4 * kMatrixInts) {
      LoadMatrix<4>(values, kStride);
      LoadMatrix<5>(values + kLanes, kStride);
      LoadMatrix<6>(rows_ + block * kMatrixInts, kQuadChannels);
      AddUnsignedMatrices<0, 6, 4>();
      AddUnsignedMatrices<1, 6, 5>();
      if constexpr (kMatrices == 2) {
        LoadMatrix<7>(rows_ + (kMostBlocks + block) * kMatrixInts, kQuadChannels);
        AddUnsignedMatrices<2, 7, 4>();
        AddUnsignedMatrices<3, 7, 5>();
      }
    }
    HWY_ALIGN int32_t sums[2 * kMatrices * kMatrixInts];
    StoreMatrix<0>(sums, kQuadChannels);
    StoreMatrix<1>(sums + kMatrixInts, kQuadChannels);
    if constexpr (kMatrices == 2) {
      StoreMatrix<2>(sums + 2 * kMatrixInts, kQuadChannels);
      StoreMatrix<3>(sums + 3 * kMatrixInts, kQuadChannels);
    }
    const F32 df;
    const I32 di;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < 2; ++c) {
        const int32_t* at = sums + (r / kPass * 2 + c) * kMatrixInts + r % kPass * kMatrixRows;
        constexpr int64_t kDigit = kPass * kMatrixRows;
        hn::Store(SumOfDigits(hn::Load(di, at), hn::Load(di, at + kDigit), hn::Load(di, at + 2 * kDigit)), df,
                  out + r * out_stride + c * kLanes);
      }
  }

  int64_t blocks_;
  HWY_ALIGN int32_t rows_[kDigitMatrices<R> * kMostBlocks * kMatrixInts];
};

#endif  // KVSHARE_MATRIX_PRODUCTS

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
