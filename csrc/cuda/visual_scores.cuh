// Scores of the visual tokens of a decoder's sequence, and the choice by them.
#pragma once
#include "cuda/filter.cuh"
#include "cuda/sequence_lists.cuh"

namespace ficoco {

// Sums whose total, times a factor, are the scores of the visual tokens: the first set among themselves, the second
// with the text. With one set, that is with the text, and there is no other.
struct VisualScores {
  const float* data;
  int parts;  // that are added up
  int64_t image_step, part_step, set_step;
  int sets;
  float factor;
  bool shares;  // the sums are plain ones over tokens, so means are still to be made of them
};

// What later kernels need of the choice.
struct VisualChoice {
  int64_t* candidates;  // (B, n - r) columns of the visual tokens that stay, or nullptr: nothing goes into others
  int64_t* text;        // (B, after) columns
  float* text_share;    // (B, after) of each in the attention by way of the text, 0 if it is no text
};

constexpr int64_t kTailVisual = 4096;  // more visual tokens take a kernel of their own
constexpr int64_t kTailCells = 4096;   // likewise windows of a local penalty

struct VisualWork {
  float *partial, *dots;
  Cell* cells;
};

// How many counters of an image the kernels here use.
constexpr int64_t kVisualCounters = 1;

bool can_choose_visual_in_tail(const ReduceSequenceParams& p);
VisualWork take_visual_work(const ReduceSequenceParams& p, Pieces& pieces);

// By logits: two kernels, three where the second cannot choose at its end. Sets the `counter_count` >= 1 counters of
// each image to 0; the last ones stay so.
cudaError_t launch_visual_logits(const ReduceSequenceParams& p, const VisualWork& w, const VisualChoice& choice,
                                 uint32_t* counters, int64_t counter_count, cudaStream_t stream);
// The choice by scores that are there, one kernel.
cudaError_t launch_visual_choice(const ReduceSequenceParams& p, const VisualWork& w, const VisualScores& scores,
                                 const VisualChoice& choice, cudaStream_t stream);

}  // namespace ficoco
