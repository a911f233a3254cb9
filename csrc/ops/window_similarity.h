// window_similarity: how alike the patches of each window of a grid are.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct WindowSimilarityCall : Call {
  Tensor out;
  WindowSimilarityParams params;
};

inline WindowSimilarityCall window_similarity_call(const Tensor& tokens_, int64_t height, int64_t width,
                                                   int64_t window) {
  constexpr const char* op = "window_similarity";
  check::floating(op, "tokens", tokens_);
  FICOCO_VALUE(tokens_.dim() == 3, op, "tokens", "(B, P, C)", check::describe(tokens_),
               "pass the patches without class token");
  const std::string grid = check::text("(", height, ", ", width, ")");
  FICOCO_VALUE(height > 0 && width > 0, op, "grid", "of positive sides", grid, "pass (height, width)");
  FICOCO_VALUE(height <= kMaxCells / width, op, "grid", check::text("of at most ", kMaxCells, " cells"), grid,
               "pass (height, width) in patches");
  const int64_t b = tokens_.size(0), patches = tokens_.size(1);
  FICOCO_VALUE(height * width == patches, op, "grid", check::text("of ", patches, " cells, one for each patch"), grid,
               "pass (height, width) in patches");
  FICOCO_VALUE(window >= 2, op, "window", "at least 2", window, "a patch alone is compared with nothing");
  WindowSimilarityCall call;
  const Tensor tokens = call.hold(readable(tokens_));
  const int64_t down = height / window, across = width / window;
  call.out = floats(tokens, {b, down * across});
  call.params = {.tokens = rows_of(tokens),
                 .batch = b,
                 .grid_width = width,
                 .width = tokens.size(2),
                 .window = window,
                 .down = down,
                 .across = across,
                 .similarity = call.out.mutable_data_ptr<float>()};
  return call;
}

inline Tensor window_similarity(const Tensor& tokens, int64_t height, int64_t width, int64_t window) {
  const WindowSimilarityCall call = window_similarity_call(tokens, height, width, window);
  Device::of(call.out).run(call);
  return call.out;
}

}  // namespace ficoco
