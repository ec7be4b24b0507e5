// A decoder whose caches hold codes, beside the same decoder with caches of floats (rewrite.h, FloatTwin): the twin
// reads what the decoder's codes mean, so that what is left between their logits is no rounding to codes; and it has
// the rows that the decoder rounded, so that each code is judged by its own row. A third, which rounds nothing, is the
// model that was to be narrowed.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "host/decoder.h"
#include "kvshare/rewrite.h"
#include "kvshare/verify.h"

namespace kvshare::host {

class Twin {
 public:
  // `runner`: of the twin. The decoder is to be at its first step.
  Twin(FloatTwin twin, std::unique_ptr<Runner> runner, Decoder unrounded)
      : twin_(std::move(twin)), runner_(std::move(runner)), unrounded_(std::move(unrounded)) {}

  // The logits that `decoder`, which has just answered `step`, should have given. kRefused where the twin takes other
  // values than the decoder.
  Result<Tensor> Logits(const Decoder& decoder, const Step& step);

  const std::vector<TwinCache>& caches() const { return twin_.caches; }
  Decoder& unrounded() { return unrounded_; }

  // The rounding of each cache's rows in all steps so far.
  std::vector<CacheRounding> Roundings() const;

 private:
  // The sums of one channel of one cache.
  struct Sums {
    double squares = 0;
    double errors = 0;
  };
  struct Rounding {
    std::vector<Sums> channels;
    int64_t far = 0;  // codes that are not next to their value
  };
  void Judge(const TwinCache& cache, const Tensor& codes, const Tensor& read, const Tensor& rows);

  FloatTwin twin_;
  std::unique_ptr<Runner> runner_;
  Decoder unrounded_;
  NamedTensors past_;                          // by the twin's inputs: what the codes before this step mean
  std::map<std::string, Rounding> roundings_;  // by present
};

// The numbers, in f32, that `codes` [B, Hkv, rows, D] of `cache` stand for. kRefused for another shape.
Result<Tensor> MeaningOf(const TwinCache& cache, const Tensor& codes);

}  // namespace kvshare::host
