#include "host/hard_prompts.h"

#include <algorithm>
#include <array>

#include "core/half.h"

namespace kvshare::host {
namespace {

constexpr double kOutlier = 64;

// Does the caller choose an extent of this kind, for each input of the prompt?
bool IsOpen(const Feeds& feeds, Axis::Kind kind, size_t axis) {
  return std::ranges::all_of(feeds.all(), [&](const Feed& feed) {
    return !feed.IsPrompt() || (axis < feed.axes.size() && feed.axes[axis].kind == kind);
  });
}

// One run for each of `sizes`, with what the prompt's inputs get at random.
Result<std::vector<Step>> StepsOf(const std::vector<int64_t>& sizes, const Feeds& feeds, uint64_t seed,
                                  int64_t vocabulary) {
  std::vector<Step> steps;
  int64_t past = 0;
  for (const int64_t size : sizes) {
    Step step{.batch = 1, .tokens = size, .past = past, .given = {}, .lens = {}};
    for (const Feed& feed : feeds.all()) {
      if (!feed.IsPrompt()) continue;
      KVSHARE_ASSIGN_OR_RETURN(step.given[feed.input.name], RandomPrompt(feed, step, seed, vocabulary));
    }
    past = step.total();
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<int64_t> PromptThenTokens(int64_t prompt, int64_t steps) {
  std::vector<int64_t> sizes(static_cast<size_t>(steps + 1), 1);
  sizes[0] = prompt;
  return sizes;
}

// The first and the last id in turn, then the last one again and again.
Tensor ExtremeIds(const Tensor& ids, int64_t vocabulary) {
  std::vector<int64_t> values(static_cast<size_t>(ids.Elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = i < values.size() / 2 && i % 2 == 1 ? 0 : vocabulary - 1;
  return Tensor::Integers(ids.type, ids.shape, values);
}

void EnlargeEmbeddings(Tensor& embeddings, bool first) {
  const int64_t width = embeddings.shape.back();
  for (int64_t i = 0; i < embeddings.Elements(); ++i)
    if ((first && i < width) || i % width == 0)
      StoreElement(embeddings.data.data(), embeddings.type, i, embeddings.At(i) * kOutlier);
}

void MakeExtreme(std::vector<Step>& steps, const Feeds& feeds, int64_t vocabulary) {
  for (const Feed& feed : feeds.all())
    for (size_t t = 0; t < steps.size() && feed.IsPrompt(); ++t) {
      Tensor& tensor = steps[t].given[feed.input.name];
      if (feed.role == Role::kIds) {
        tensor = ExtremeIds(tensor, vocabulary);
      } else {
        EnlargeEmbeddings(tensor, t == 0);
      }
    }
}

// Sizes below, at and above the window; for models without a window, some sizes.
std::vector<int64_t> ChunkSizes(int64_t window) {
  if (window <= 1) return {3, 4, 1, 7, 2};
  return {3, window - 1, 1, window, window + 1, 1, 2};
}

// The mask [2, columns] of two sequences: a prompt of `prompt` columns, padded behind `lens` tokens, then decoded ones.
std::vector<int64_t> MaskOf(const std::array<int64_t, 2>& lens, int64_t prompt, int64_t columns, Padding padding) {
  std::vector<int64_t> mask;
  for (const int64_t len : lens)
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t decoded = columns - prompt;
      const bool is_new = padding == Padding::kBehind && column >= prompt;
      mask.push_back(column < len + (padding == Padding::kCompact ? decoded : 0) || is_new ? 1 : 0);
    }
  return mask;
}

// Is each input one that counts tokens in a way that `RaggedPrompt` knows?
bool KnowsPadding(const Feeds& feeds) {
  bool has_mask = false;
  for (const Feed& feed : feeds.all()) {
    const size_t rank = feed.axes.size();
    switch (feed.role) {
      case Role::kIds:
      case Role::kZeros:
      case Role::kHasPast:
      case Role::kState: break;
      case Role::kMask: has_mask = true; break;
      case Role::kPositions:
        if (rank != 2) return false;
        break;
      default: return false;
    }
    if (rank > 0 && feed.role != Role::kZeros && feed.axes[0].kind != Axis::Kind::kBatch) return false;
  }
  return has_mask;
}

// Sequence `row` of a step of both, where `len` of its tokens are none of padding.
Step Alone(const Step& both, const Feeds& feeds, int64_t row, int64_t len, int64_t past) {
  Step alone{.batch = 1, .tokens = len, .past = past, .given = {}, .lens = {}};
  for (const Feed& feed : feeds.all()) {
    if (feed.role != Role::kIds) continue;
    const Tensor& ids = both.given.at(feed.input.name);
    std::vector<int64_t> values;
    for (int64_t s = 0; s < len; ++s) values.push_back(static_cast<int64_t>(ids.At(row * ids.shape[1] + s)));
    alone.given[feed.input.name] = Tensor::Integers(ids.type, {1, len}, values);
  }
  return alone;
}

}  // namespace

Result<std::vector<Runs>> HardPrompts(const RandomTokens& tokens, const Feeds& feeds, const HardModel& model) {
  std::vector<Runs> all;
  if (!IsOpen(feeds, Axis::Kind::kTokens, 1)) return all;
  const auto add = [&](const char* name, const std::vector<int64_t>& sizes) -> Status {
    KVSHARE_ASSIGN_OR_RETURN(auto steps, StepsOf(sizes, feeds, tokens.seed, model.vocabulary));
    all.push_back({name, std::move(steps)});
    return {};
  };
  const int64_t steps = feeds.HasStates() ? tokens.steps : 0;
  KVSHARE_RETURN_IF_ERROR(add("extremes", PromptThenTokens(tokens.prompt, steps)));
  MakeExtreme(all.back().steps, feeds, model.vocabulary);
  if (model.window > 0) KVSHARE_RETURN_IF_ERROR(add("long", PromptThenTokens(2 * model.window + 3, steps)));
  if (feeds.HasStates()) KVSHARE_RETURN_IF_ERROR(add("chunks", ChunkSizes(model.window)));
  return all;
}

Result<std::optional<RaggedRuns>> RaggedPrompt(const RandomTokens& tokens, const Feeds& feeds, const HardModel& model) {
  if (!IsOpen(feeds, Axis::Kind::kTokens, 1) || !KnowsPadding(feeds) || tokens.prompt < 3)
    return std::optional<RaggedRuns>();
  const int64_t prompt = tokens.prompt;
  const std::array<int64_t, 2> lens = {prompt, prompt * 2 / 3};
  RaggedRuns runs{{"ragged", {}}, {{"alone", {}}, {"alone", {}}}};
  for (int64_t t = 0; t <= (feeds.HasStates() ? tokens.steps : 0); ++t) {
    Step step{.batch = 2, .tokens = t == 0 ? prompt : 1, .past = t == 0 ? 0 : prompt + t - 1, .given = {}, .lens = {}};
    if (t == 0) step.lens.assign(lens.begin(), lens.end());
    for (const Feed& feed : feeds.all()) {
      const std::string& name = feed.input.name;
      const std::vector<int64_t> shape = feed.ShapeAt(step);
      if (feed.role == Role::kIds) {
        KVSHARE_ASSIGN_OR_RETURN(step.given[name], RandomPrompt(feed, step, tokens.seed, model.vocabulary));
      } else if (feed.role == Role::kMask) {
        step.given[name] = Tensor::Integers(feed.input.type, shape, MaskOf(lens, prompt, step.total(), model.padding));
      } else if (feed.role == Role::kPositions) {
        std::vector<int64_t> positions;
        for (const int64_t len : lens)
          for (int64_t s = 0; s < step.tokens; ++s) positions.push_back(t == 0 ? s : len + t - 1);
        step.given[name] = Tensor::Integers(feed.input.type, shape, positions);
      }
    }
    for (size_t b = 0; b < lens.size(); ++b) {
      const int64_t past = t == 0 ? 0 : lens[b] + t - 1;
      runs.alone[b].steps.push_back(Alone(step, feeds, static_cast<int64_t>(b), t == 0 ? lens[b] : 1, past));
    }
    runs.together.steps.push_back(std::move(step));
  }
  return std::optional(std::move(runs));
}

}  // namespace kvshare::host
