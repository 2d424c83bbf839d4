// Causal attention over a cache in float16, block by block: what `attend_blocks` in
// jaxserver/core/ops/attention_blocks.py computes, in another order.
//
// A query's numbers are added up in an order that is its own: along a key one after the
// other, over the positions of a block lane by lane and then the lanes in pairs, and over
// blocks from the first on. So its bits do not depend on what is computed beside it.
#include "sharing.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace jaxserver {
namespace {

using Vector = __m512;
constexpr int kLanes = 16;
// Positions of a block, whose scores are half a block at a time in registers.
constexpr int kBlock = 128, kHalf = 64;
// Queries of a tile, and columns of values: their sums are in registers.
constexpr int kQueries = 4, kColumns = 64;
// Queries of one thread at a time; more share what is read of the cache.
constexpr int64_t kMostQueries = 96;
// Fewer multiplications take less time than to wake a thread.
constexpr int64_t kLeastForThreads = 1 << 16;
constexpr float kNever = -std::numeric_limits<float>::infinity();

using Half = uint16_t;

inline Vector load(const float* from) { return _mm512_loadu_ps(from); }

inline Vector load(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// No processor expects values while it reads keys.
inline void fetch(const Half* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) __builtin_prefetch(from + i);
}

// The keys and values of a block: those of a position lie so far apart.
template <typename Number>
struct Block {
  const Number *keys, *values;
  int64_t value_stride, count;

  // Some of the values, unless that has been done.
  void fetch_values(int64_t d) const {
    if constexpr (std::is_same_v<Number, Half>) fetch(values + d * count, count);
  }
};

// Cody and Waite's reduction and the exponential's series; below 2^-149 it is 0. Operands
// are in such an order that what is no number stays so.
inline Vector exponential(Vector x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const Vector log2e = _mm512_set1_ps(1.44269504f);
  const Vector power = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 8);
  x = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
  x = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), x);
  constexpr float kTerms[] = {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
  Vector sum = _mm512_set1_ps(1 / 5040.0f);
  for (const float term : kTerms) sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, power);
}

inline int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

struct Shape {
  int64_t rows, time, kv_heads, groups, head_dim, pages, layers, page_size, pages_per_row;
};

// What one thread works with; kept for its next work.
struct Scratch {
  std::vector<float> keys, values, queries, sums, best, mass;

  void fit(int64_t count, int64_t head_dim, int64_t width) {
    keys.resize(head_dim * kBlock);
    values.resize(kBlock * width);
    queries.resize(count * head_dim);
    sums.assign(count * width, 0.0f);
    best.assign(count, -std::numeric_limits<float>::max());
    mass.assign(count, 0.0f);
  }
};

struct Attention {
  Shape shape;
  const float* queries;
  const Half *keys, *values;
  const int32_t *positions, *ends, *table;
  int64_t layer;
  float* found;

  int64_t num_queries() const { return shape.time * shape.groups; }

  // Where the nth query of a row and a head is.
  int64_t at(int64_t row, int64_t head, int64_t nth) const {
    const int64_t token = row * shape.time + nth / shape.groups;
    const int64_t group = nth % shape.groups;
    return ((token * shape.kv_heads + head) * shape.groups + group) * shape.head_dim;
  }

  int64_t page_of(int64_t row, int64_t nth) const {
    const int64_t page = table ? table[row * shape.pages_per_row + nth] : row;
    return std::clamp<int64_t>(page, 0, shape.pages - 1);
  }

  int64_t block_size() const { return std::min<int64_t>(shape.page_size, kBlock); }

  // Where the keys, and the values, of a row's position begin that is a block's first.
  int64_t block_at(int64_t row, int64_t head, int64_t position) const {
    const int64_t blocks = shape.page_size / block_size();
    const int64_t page = page_of(row, position / shape.page_size);
    const int64_t block = position % shape.page_size / block_size();
    const int64_t before = (page * shape.layers + layer) * blocks + block;
    return (before * shape.kv_heads + head) * shape.head_dim * block_size();
  }

  // The keys and values of some positions, from a block's first on, in float32.
  void read(int64_t row, int64_t head, int64_t begin, int64_t count, int64_t width,
            Scratch& scratch) const {
    const int64_t head_dim = shape.head_dim;
    for (int64_t done = 0; done < count;) {
      const int64_t run = std::min(count - done, block_size());
      const int64_t first = block_at(row, head, begin + done);
      const Half *key = keys + first, *value = values + first;
      for (int64_t d = 0; d < head_dim; ++d, key += block_size()) {
        fetch(value + d * run, run);
        widen(key, run, scratch.keys.data() + d * kBlock + done);
      }
      for (int64_t i = 0; i < run; ++i)
        widen(value + i * head_dim, head_dim, scratch.values.data() + (done + i) * width);
      done += run;
    }
  }

  static void widen(const Half* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      _mm512_storeu_ps(to + i, load(from + i));
    if (i == count) return;
    const __mmask16 rest = (1 << (count - i)) - 1;
    const __m256i last = _mm256_maskz_loadu_epi16(rest, from + i);
    _mm512_mask_storeu_ps(to + i, rest, _mm512_cvtph_ps(last));
  }

  // Scores of a tile of queries, of the positions that each may see.
  template <int Queries, typename Number>
  void score(const Block<Number>& block, const Scratch& scratch, int64_t nth,
             const int64_t (&seen)[Queries], float (&scores)[Queries][kBlock]) const {
    const int64_t head_dim = shape.head_dim;
    for (int half = 0; half < kBlock; half += kHalf) {
      constexpr int kVectors = kHalf / kLanes;
      Vector sums[Queries][kVectors] = {};
      for (int64_t d = 0; d < head_dim; ++d) {
        if (half == 0) block.fetch_values(d);
        const Number* key = block.keys + d * kBlock + half;
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
          const Vector one = _mm512_set1_ps(scratch.queries[(nth + q) * head_dim + d]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            sums[q][v] = _mm512_fmadd_ps(one, load(key + v * kLanes), sums[q][v]);
        }
      }
      for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < kVectors; ++v) {
          const int64_t left = seen[q] - half - v * kLanes;
          const __mmask16 mask = left >= kLanes ? -1 : left <= 0 ? 0 : (1 << left) - 1;
          _mm512_storeu_ps(scores[q] + half + v * kLanes,
                           _mm512_mask_mov_ps(_mm512_set1_ps(kNever), mask, sums[q][v]));
        }
    }
  }

  // Turns scores into weights; gives what the sums until now are worth.
  static float weigh(float (&scores)[kBlock], float& best, float& mass) {
    Vector most = _mm512_set1_ps(best);
    for (int i = 0; i < kBlock; i += kLanes) most = _mm512_max_ps(most, load(scores + i));
    const float new_best = _mm512_reduce_max_ps(most);
    Vector sum = _mm512_setzero_ps();
    for (int i = 0; i < kBlock; i += kLanes) {
      const Vector score = load(scores + i);
      const __mmask16 is_never =
          _mm512_cmp_ps_mask(score, _mm512_set1_ps(kNever), _CMP_EQ_OQ);
      const Vector less = _mm512_sub_ps(score, _mm512_set1_ps(new_best));
      const Vector weight = _mm512_maskz_mov_ps(~is_never, exponential(less));
      _mm512_storeu_ps(scores + i, weight);
      sum = _mm512_add_ps(sum, weight);
    }
    const float kept = _mm512_cvtss_f32(exponential(_mm512_set1_ps(best - new_best)));
    best = new_best;
    mass = mass * kept + _mm512_reduce_add_ps(sum);
    return kept;
  }

  template <int Queries, typename Number>
  static void add_values(const Block<Number>& block, const float (&weights)[Queries][kBlock],
                         const float (&kept)[Queries], int64_t width, Scratch& scratch,
                         int64_t nth) {
    for (int64_t column = 0; column < width; column += kColumns) {
      constexpr int kVectors = kColumns / kLanes;
      Vector sums[Queries][kVectors];
      for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < kVectors; ++v) {
          const float* before = &scratch.sums[(nth + q) * width + column + v * kLanes];
          sums[q][v] = _mm512_mul_ps(load(before), _mm512_set1_ps(kept[q]));
        }
      for (int64_t i = 0; i < block.count; ++i) {
        const Number* value = block.values + i * block.value_stride + column;
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
          const Vector weight = _mm512_set1_ps(weights[q][i]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            sums[q][v] = _mm512_fmadd_ps(weight, load(value + v * kLanes), sums[q][v]);
        }
      }
      for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < kVectors; ++v)
          _mm512_storeu_ps(&scratch.sums[(nth + q) * width + column + v * kLanes],
                           sums[q][v]);
    }
  }

  // A block, for as large tiles of queries as there are left.
  template <int Queries, typename Number>
  void tiles(const Block<Number>& block, int64_t begin, int64_t row, int64_t first,
             int64_t nth, int64_t end, int64_t width, Scratch& scratch) const {
    for (; nth + Queries <= end; nth += Queries) {
      int64_t seen[Queries];
      for (int q = 0; q < Queries; ++q) {
        const int64_t token = (first + nth + q) / shape.groups;
        seen[q] = std::min(positions[row * shape.time + token] + 1 - begin, block.count);
      }
      float scores[Queries][kBlock], kept[Queries];
      score<Queries>(block, scratch, nth, seen, scores);
      for (int q = 0; q < Queries; ++q)
        kept[q] = weigh(scores[q], scratch.best[nth + q], scratch.mass[nth + q]);
      add_values<Queries>(block, scores, kept, width, scratch, nth);
    }
    if constexpr (Queries > 1)
      if (nth < end)
        tiles<Queries - 1>(block, begin, row, first, nth, end, width, scratch);
  }

  // Some queries of one row and head.
  void attend(int64_t row, int64_t head, int64_t first, int64_t last) const {
    static thread_local Scratch scratch;
    const int64_t head_dim = shape.head_dim, count = last - first;
    const int64_t width = rounded_up(head_dim, kColumns);
    scratch.fit(count, head_dim, width);
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < head_dim; ++d)
        scratch.queries[i * head_dim + d] = queries[at(row, head, first + i) + d] * scale;
    int64_t end = 0;
    for (int64_t i = first / shape.groups; i <= (last - 1) / shape.groups; ++i)
      end = std::max<int64_t>(end, positions[row * shape.time + i] + 1);
    end = std::min<int64_t>({end, ends[row], shape.page_size * shape.pages_per_row});
    // One tile reads every number once: it need not be widened before.
    const bool is_there = block_size() == kBlock && head_dim % kColumns == 0;
    for (int64_t begin = 0; begin < end; begin += kBlock) {
      const int64_t here = std::min<int64_t>(end - begin, kBlock);
      if (is_there && count <= kQueries) {
        const int64_t at = block_at(row, head, begin);
        const Block<Half> block{keys + at, values + at, head_dim, here};
        tiles<kQueries>(block, begin, row, first, 0, count, width, scratch);
      } else {
        read(row, head, begin, here, width, scratch);
        const Block<float> block{scratch.keys.data(), scratch.values.data(), width, here};
        tiles<kQueries>(block, begin, row, first, 0, count, width, scratch);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < head_dim; ++d)
        found[at(row, head, first + i) + d] =
            scratch.sums[i * width + d] / scratch.mass[i];
  }
};

using Vectors = ffi::Buffer<ffi::F32, 5>;
using Pages = ffi::Buffer<ffi::F16, 6>;

ffi::Error run(ffi::ThreadPool pool, Vectors queries, Pages keys, Pages values,
               ffi::BufferR0<ffi::S32> layer, ffi::BufferR2<ffi::S32> positions,
               ffi::BufferR1<ffi::S32> ends, ffi::RemainingArgs table,
               ffi::Result<Vectors> found) {
  const auto size = queries.dimensions();
  const auto cache = keys.dimensions();
  if (cache[5] != std::min<int64_t>(cache[2] * cache[5], kBlock))
    return ffi::Error::InvalidArgument("a cache in blocks of another size");
  Shape shape{size[0], size[1], size[2], size[3], size[4], cache[0], cache[1],
              cache[2] * cache[5], 1};
  const int32_t* pages_of_rows = nullptr;
  if (table.size() > 0) {
    const auto given = table.get<ffi::BufferR2<ffi::S32>>(0);
    if (given.has_error()) return given.error();
    pages_of_rows = given->typed_data();
    shape.pages_per_row = given->dimensions()[1];
  }
  const Attention attention{shape,
                            queries.typed_data(),
                            reinterpret_cast<const Half*>(keys.untyped_data()),
                            reinterpret_cast<const Half*>(values.untyped_data()),
                            positions.typed_data(),
                            ends.typed_data(),
                            pages_of_rows,
                            std::clamp<int64_t>(*layer.typed_data(), 0, shape.layers - 1),
                            found->typed_data()};
  const int64_t all = attention.num_queries();
  const int64_t parts = (all + kMostQueries - 1) / kMostQueries;
  const int64_t longest = shape.page_size * shape.pages_per_row;
  int64_t positions_seen = 0;
  for (int64_t row = 0; row < shape.rows; ++row)
    positions_seen += std::min<int64_t>(ends.typed_data()[row], longest);
  const bool is_tiny = positions_seen * all * shape.head_dim < kLeastForThreads;
  const int64_t per_row = shape.kv_heads * parts;
  share(pool, is_tiny ? 1 : pool.num_threads(), shape.rows * per_row, [=](int64_t nth) {
    const int64_t row = nth / per_row, head = nth % per_row / parts, part = nth % parts;
    attention.attend(row, head, all * part / parts, all * (part + 1) / parts);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxserver

namespace ffi = xla::ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention, jaxserver::run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<jaxserver::Vectors>()
                                  .Arg<jaxserver::Pages>()
                                  .Arg<jaxserver::Pages>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<jaxserver::Vectors>());
