// What visual tokens receive from chosen rows of text: the sum over the rows, and the largest.
//
// The maximum is that of the mean over heads, so a tile of rows and visual tokens goes through the heads and keeps
// their sum in registers. A prompt has few such tiles: a block has 4 heads of one, and the second kernel adds up the
// blocks of a tile before it folds the rows. Probabilities come from the softmax statistics of the rows
// (row_softmax.cu). Rows are taken 128 at a time, so that memory is O(B H n) and no map of all tokens is held. A tile
// without a chosen row is not computed.
//
// 2 B R H d (T + n) FLOPs, 2 B R H n d by logits: bound by arithmetic. Shared memory 74 KB
// (half), 71 KB (float).
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

constexpr int kHeads = 4;             // of one block
constexpr int64_t kRowsAtOnce = 128;  // of the text
constexpr int kFoldThreads = 256;
constexpr int kShares = kFoldThreads / kWarp;  // of the rows, in the second kernel

// Rows [begin, begin + count) of the text.
struct Range {
  int begin, count;
};

// parts[b][share of heads][row][visual token]: the sum over a share of the heads, of a range of rows.
template <class T, bool kVector, bool kProbs>
__global__ void __launch_bounds__(kTileThreads, 2)
    received_kernel(ReceivedFromParams p, View<T> query, View<T> key, RowSoftmax softmax, Range range, float* parts) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kDeepStages<T>>*>(storage);
  using Sums = TileSums<T>;
  __shared__ int texts[kTile], visuals[kTile];
  const int across = static_cast<int>(ceil_div(p.count, kTile)), first = static_cast<int>(threadIdx.x);
  const int i0 = static_cast<int>(blockIdx.x) / across * kTile, j0 = static_cast<int>(blockIdx.x) % across * kTile;
  const int rows = min(kTile, range.count - i0), columns = min(kTile, static_cast<int>(p.count) - j0);
  const int64_t b = blockIdx.z;
  const int h0 = static_cast<int>(blockIdx.y) * kHeads, heads = min(kHeads, query.heads - h0);
  const int group = query.heads / key.heads;
  const int64_t row0 = b * p.text_count + range.begin + i0;
  const bool chosen = first < rows && p.chosen[row0 + first];
  if (first < kTile) {
    const int64_t text = chosen ? p.text[row0 + first] : p.offset;
    const int64_t visual = first < columns ? p.visual[b * p.count + j0 + first] : 0;
    assert(text >= p.offset && text < p.keys && "ficoco::received_from: a row's query is not there");
    assert(visual >= 0 && visual < p.keys && "ficoco::received_from: an index is no token");
    texts[first] = static_cast<int>(text);
    visuals[first] = static_cast<int>(visual);
  }
  if (!__syncthreads_or(chosen)) return;  // nothing reads the tile
  const int chunks = chunks_of(p.width);
  float total[kProbs ? Sums::kRows : 1][kProbs ? Sums::kColumns : 1] = {};
  Sums sums;
  const auto load = [&](int turn, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    const int h = h0 + turn;
    to.a.template load<kVector>([&](int i) { return query.row(b, h, texts[i] - p.offset); }, rows, c, p.width);
    to.b.template load<kVector>([&](int j) { return key.row(b, h / group, visuals[j]); }, columns, c, p.width);
    if constexpr (kProbs) {
      const int64_t statistics = (b * query.heads + h) * p.text_count + range.begin + i0;
      to.load_softmax(softmax.top, softmax.inverse, [&](int i) { return statistics + i; }, rows);
    }
  };
  walk(shared, heads, chunks, load, [&](int, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if constexpr (kProbs) {
      if (chunk != chunks - 1) return;
#pragma unroll
      for (int i = 0; i < Sums::kRows; ++i) {
        const int at = Sums::row(i);
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          if (!attends(p.causal, p.key_mask, p.keys, b, texts[at], visuals[Sums::column(j)])) continue;
          total[i][j] += softmax_term(sums.at(i, j), from.top[at], p.scale * kLog2e) * from.inverse[at];
        }
      }
      sums.clear();
    }
  });
  float* out = parts + ((b * gridDim.y + blockIdx.y) * kRowsAtOnce + i0) * p.count + j0;
  store_tile<T>(out, p.count, rows, columns, [&](int i, int j) {
    if constexpr (kProbs) {
      return total[i][j];
    } else {
      return sums.at(i, j) * p.scale;
    }
  });
}

// A warp has a share of the rows and 32 visual tokens. The rows of a range go into what those before left.
__global__ void __launch_bounds__(kFoldThreads, 2)
    fold_rows_kernel(ReceivedFromParams p, Range range, int head_shares, const float* parts) {
  __shared__ float totals[kShares][kWarp], peaks[kShares][kWarp];
  const int lane = threadIdx.x % kWarp, share = threadIdx.x / kWarp;
  const int64_t b = blockIdx.y, i = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const bool exists = i < p.count;
  const float factor = 1.f / static_cast<float>(p.query.heads);
  const auto larger = [](float a, float b) { return b > a || b != b ? b : a; };  // NaN stays
  const bool* chosen = p.chosen + b * p.text_count;
  float total = 0.f, peak = -INFINITY;
  bool any = false;
  for (int r = share; r < range.count; r += kShares) {
    if (!exists || !chosen[range.begin + r]) continue;
    float sum = 0.f;
    const float* part = parts + (b * head_shares * kRowsAtOnce + r) * p.count + i;
#pragma unroll 4
    for (int s = 0; s < head_shares; ++s) sum += part[s * kRowsAtOnce * p.count];
    total += sum * factor;
    peak = larger(peak, sum * factor);
  }
  totals[share][lane] = total;
  peaks[share][lane] = peak;
  for (int r = threadIdx.x; r < range.begin + range.count; r += kFoldThreads) any = any || chosen[r];
  any = __syncthreads_or(any);
  if (share > 0 || !exists) return;
  const int64_t at = b * p.count + i;
  total = range.begin ? p.total[at] : 0.f;
  peak = range.begin ? p.peak[at] : -INFINITY;
  for (int s = 0; s < kShares; ++s) {
    total += totals[s][lane];
    peak = larger(peak, peaks[s][lane]);
  }
  p.total[at] = total;
  p.peak[at] = any || range.begin + range.count < p.text_count ? peak : 0.f;  // minus infinity for later rows
}

struct Workspace {
  RowSoftmax rows;
  float* parts;
};

int64_t head_shares(const ReceivedFromParams& p) { return ceil_div(p.query.heads, kHeads); }

Workspace take(const ReceivedFromParams& p, Pieces& pieces) {
  Workspace w{};
  if (p.probs) w.rows = take_row_softmax(pieces, p.batch, p.query.heads, p.text_count, p.keys);
  w.parts = pieces.take<float>(p.batch, head_shares(p), kRowsAtOnce, p.count);
  return w;
}

template <class T, bool kVector, bool kProbs>
cudaError_t launch(const ReceivedFromParams& p, const Workspace& w, cudaStream_t stream) {
  const auto kernel = received_kernel<T, kVector, kProbs>;
  constexpr size_t kShared = sizeof(TileShared<T, kDeepStages<T>>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  const int shares = static_cast<int>(head_shares(p));
  for (int64_t begin = 0; begin < p.text_count; begin += kRowsAtOnce) {
    const int64_t count = begin + kRowsAtOnce < p.text_count ? kRowsAtOnce : p.text_count - begin;
    const Range range{static_cast<int>(begin), static_cast<int>(count)};
    const dim3 grid(ceil_div(count, kTile) * ceil_div(p.count, kTile), shares, p.batch);
    kernel<<<grid, kTileThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key), w.rows, range, w.parts);
    FICOCO_TRY(launched());
    fold_rows_kernel<<<dim3(ceil_div(p.count, kWarp), p.batch), kFoldThreads, 0, stream>>>(p, range, shares, w.parts);
    FICOCO_TRY(launched());
  }
  return cudaSuccess;
}

}  // namespace

size_t workspace_bytes(const ReceivedFromParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_received_from(const ReceivedFromParams& p, void* workspace, cudaStream_t stream) {
  const size_t results = static_cast<size_t>(p.batch * p.count) * sizeof(float);
  if (results == 0) return cudaSuccess;
  if (p.text_count == 0) {  // an empty sum is 0
    FICOCO_TRY(set_to_zero(p.total, results, stream));
    return set_to_zero(p.peak, results, stream);
  }
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  if (p.probs) {
    RowSoftmaxParams rows{.query = p.query,
                          .key = p.key,
                          .rows = p.text,
                          .batch = p.batch,
                          .tokens = p.keys,
                          .width = p.width,
                          .count = p.text_count,
                          .first = 0,
                          .scale = p.scale,
                          .out = w.rows};
    rows.offset = p.offset;
    rows.causal = p.causal;
    rows.key_mask = p.key_mask;
    FICOCO_TRY(launch_row_softmax(rows, stream));
  }
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    return p.probs ? launch<T, kVector, true>(p, w, stream) : launch<T, kVector, false>(p, w, stream);
  });
}

}  // namespace ficoco
