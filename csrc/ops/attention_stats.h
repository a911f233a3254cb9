// attention_stats, from query and key or (.map) from a given map.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct AttentionStatsCall : Call {
  Tensor class_attention, patch_attention;
  AttentionStatsParams params;
};

struct AttentionStatsMapCall : Call {
  Tensor class_attention, patch_attention;
  AttentionStatsMapParams params;
};

// Allocates the statistics of `count` patches and shows the kernel where; patch attention without `patches` is zeros.
template <class Call>
void allocate_stats(Call& call, const Tensor& like, int64_t batch, int64_t count, bool patches) {
  call.class_attention = floats(like, {batch, count});
  call.patch_attention = floats(like, {batch, count});
  if (!patches) call.patch_attention.zero_();
  call.params.class_attention = call.class_attention.template mutable_data_ptr<float>();
  call.params.patch_attention = call.patch_attention.template mutable_data_ptr<float>();
}

inline AttentionStatsCall attention_stats_call(const Tensor& query_, const Tensor& key_, double scale, bool class_token,
                                               bool probs, bool column, bool patches) {
  constexpr const char* op = "attention_stats";
  check::query_key(op, query_, key_);
  check::has_patches(op, "query", query_, query_.size(2), class_token);
  AttentionStatsCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  const int64_t b = query.size(0), n = query.size(2);
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .batch = b,
                 .tokens = n,
                 .width = query.size(3),
                 .first = class_token,
                 .scale = static_cast<float>(scale),
                 .probs = probs,
                 .column = column,
                 .patches = patches};
  allocate_stats(call, query, b, n - class_token, patches);
  return call;
}

inline AttentionStatsMapCall attention_stats_call(const Tensor& attn_, bool class_token, bool column, bool patches) {
  constexpr const char* op = "attention_stats";
  check::attention_map(op, attn_);
  check::has_patches(op, "attn", attn_, attn_.size(-1), class_token);
  AttentionStatsMapCall call;
  const Tensor attn = call.hold(readable(attn_));
  const int64_t b = attn.size(0), n = attn.size(-1);
  call.params = {
      .attn = rows_of(attn), .batch = b, .tokens = n, .first = class_token, .column = column, .patches = patches};
  allocate_stats(call, attn, b, n - class_token, patches);
  return call;
}

template <class StatsCall>
std::tuple<Tensor, Tensor> run_stats(const StatsCall& call) {
  Device::of(call.class_attention).run(call);
  return {call.class_attention, call.patch_attention};
}

inline std::tuple<Tensor, Tensor> attention_stats(const Tensor& query, const Tensor& key, double scale,
                                                  bool class_token, bool probs, bool column, bool patches) {
  return run_stats(attention_stats_call(query, key, scale, class_token, probs, column, patches));
}

inline std::tuple<Tensor, Tensor> attention_stats_map(const Tensor& attn, bool class_token, bool column, bool patches) {
  return run_stats(attention_stats_call(attn, class_token, column, patches));
}

}  // namespace ficoco
