// The list of operators, one for all devices. The schemas are in ficoco_ext/ops.
//
// Each operator is a header, and only this file compiles them: torch's headers take ten times as long to compile as
// ours, and each further file would compile them again.
//
// With FICOCO_EMULATED the operators are in namespace ficoco_emu and run the CUDA kernels on CPU tensors. The tests use
// this to run them on the host.
#include <torch/library.h>

#include "ops/attention_stats.h"
#include "ops/bipartite_thin.h"
#include "ops/compress.h"
#include "ops/correlate.h"
#include "ops/correlate_tokens.h"
#include "ops/cosines.h"
#include "ops/filter.h"
#include "ops/greedy_cover.h"
#include "ops/greedy_select.h"
#include "ops/match.h"
#include "ops/received_from.h"
#include "ops/reduce.h"
#include "ops/reduce_sequence.h"
#include "ops/to_sequence.h"
#include "ops/token_attention.h"
#include "ops/top_of_segments.h"
#include "ops/window_similarity.h"
#ifdef FICOCO_EMULATED
#include "cuda/launch.h"
#endif

namespace ficoco {

static void register_operators(torch::Library& m) {
  m.impl("attention_stats", &attention_stats);
  m.impl("attention_stats.map", &attention_stats_map);
  m.impl("filter", &filter);
  m.impl("correlate", &correlate);
  m.impl("correlate.map", &correlate_map);
  m.impl("correlate.key", &correlate_key);
  m.impl("correlate.tokens", &correlate_tokens);
  m.impl("match", &match);
  m.impl("cosines", &cosines);
  m.impl("greedy_select", &greedy_select);
  m.impl("greedy_cover", &greedy_cover);
  m.impl("bipartite_thin", &bipartite_thin);
  m.impl("window_similarity", &window_similarity);
  m.impl("received_from", &received_from);
  m.impl("top_of_segments", &top_of_segments);
  m.impl("compress", &compress);
  m.impl("token_attention", &token_attention);
  m.impl("to_sequence", &to_sequence);
  m.impl("reduce", &reduce);
  m.impl("reduce.map", &reduce_map);
  m.impl("reduce_sequence", &reduce_sequence);
}

const Device& Device::of([[maybe_unused]] const at::Tensor& tensor) {
#if defined(FICOCO_EMULATED)
  return cuda_device();
#elif defined(FICOCO_WITH_CUDA)
  return tensor.is_cuda() ? cuda_device() : cpu_device();
#else
  return cpu_device();
#endif
}

}  // namespace ficoco

#ifdef FICOCO_EMULATED
TORCH_LIBRARY_IMPL(ficoco_emu, CPU, m) { ficoco::register_operators(m); }
TORCH_LIBRARY_FRAGMENT(ficoco_emu, m) {
  m.def("launch_count() -> int", [] { return ficoco::launch_count(); });
}
#else
TORCH_LIBRARY_IMPL(ficoco, CPU, m) { ficoco::register_operators(m); }
#ifdef FICOCO_WITH_CUDA
TORCH_LIBRARY_IMPL(ficoco, CUDA, m) { ficoco::register_operators(m); }
#endif
#endif
