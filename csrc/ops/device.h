// Runs what an operator has checked and allocated. There is one Device for each kind of device: it adds the checks that
// only this kind needs (values of indices on the CPU, sizes of grids on a GPU) and calls its kernels. A Call without
// its `run` does not compile.
#pragma once
#include <ATen/core/Tensor.h>

namespace ficoco {

struct AttentionStatsCall;
struct AttentionStatsMapCall;
struct FilterCall;
struct CorrelateCall;
struct CorrelateTokensCall;
struct MatchCall;
struct CosinesCall;
struct GreedySelectCall;
struct GreedyCoverCall;
struct BipartiteThinCall;
struct WindowSimilarityCall;
struct ReceivedFromCall;
struct TopOfSegmentsCall;
struct CompressCall;
struct TokenAttentionCall;
struct ToSequenceCall;
struct ReduceCall;
struct ReduceSequenceCall;

class Device {
 public:
  // The device that holds the tensor (library.cpp).
  static const Device& of(const at::Tensor& tensor);

  virtual void run(const AttentionStatsCall& call) const = 0;
  virtual void run(const AttentionStatsMapCall& call) const = 0;
  virtual void run(const FilterCall& call) const = 0;
  virtual void run(const CorrelateCall& call) const = 0;
  virtual void run(const CorrelateTokensCall& call) const = 0;
  virtual void run(const MatchCall& call) const = 0;
  virtual void run(const CosinesCall& call) const = 0;
  virtual void run(const GreedySelectCall& call) const = 0;
  virtual void run(const GreedyCoverCall& call) const = 0;
  virtual void run(const BipartiteThinCall& call) const = 0;
  virtual void run(const WindowSimilarityCall& call) const = 0;
  virtual void run(const ReceivedFromCall& call) const = 0;
  virtual void run(const TopOfSegmentsCall& call) const = 0;
  virtual void run(const CompressCall& call) const = 0;
  virtual void run(const TokenAttentionCall& call) const = 0;
  virtual void run(const ToSequenceCall& call) const = 0;
  virtual void run(const ReduceCall& call) const = 0;
  virtual void run(const ReduceSequenceCall& call) const = 0;

 protected:
  ~Device() = default;
};

const Device& cpu_device();   // device_cpu.cpp
const Device& cuda_device();  // device_cuda.cpp: with FICOCO_WITH_CUDA or FICOCO_EMULATED

}  // namespace ficoco
