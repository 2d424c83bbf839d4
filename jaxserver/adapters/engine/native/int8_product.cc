// Products with weights in int8, of which each token is two bytes: `int8_product` in
// jaxserver/core/ops/int8_product.py, to the bit.
//
// Tokens and weights are contiguous along the axis that is summed over, so one instruction
// takes a vector of either and adds each four products to a 32-bit sum (VNNI). Weights need
// no packing for that, which for few tokens would take longer than the product itself.
#include "sharing.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace jaxserver {
namespace {

// Of a tile, whose sums stay in registers; the rows are the high bytes and the low ones.
constexpr int kTokens = 2, kOuts = 4;
// Tiles of weights that are fetched before their use.
constexpr int64_t kAhead = 2;
// Of tokens, that stay in the L1 cache, and of weights, that stay in the L2 cache.
constexpr int64_t kBlockBytes = 24 << 10;
constexpr int64_t kLeastChunkBytes = 128 << 10, kMostChunkBytes = 512 << 10;
// The others take more where a thread comes late.
constexpr int64_t kChunksPerThread = 4;
// Fewer multiplications, or fewer numbers, take less time than to wake a thread.
constexpr int64_t kLeastForThreads = 1 << 19, kLeastToSplitTogether = 1 << 15;

using Quad = int32_t __attribute__((vector_size(16)));
using Floats = float __attribute__((vector_size(16)));

// Zen 4 takes a 512-bit vector in two halves: it multiplies as many bytes with 256 bits,
// and has half as many lanes to add up. (GCC before 13 calls it a Zen 3 that has AVX512.)
struct Vector {
#if !defined(__znver3__) && !defined(__znver4__)
  using Type = __m512i;
  static Type load(const void* from) { return _mm512_loadu_si512(from); }
  static __m256i halved(Type sums) {
    return _mm256_add_epi32(_mm512_castsi512_si256(sums),
                            _mm512_extracti64x4_epi64(sums, 1));
  }
#else
  using Type = __m256i;
  static Type load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static __m256i halved(Type sums) { return sums; }
#endif
  static constexpr int64_t kBytes = sizeof(Type);

  static Type load_first(const void* from, int64_t count) {
    uint8_t bytes[kBytes] = {};
    std::memcpy(bytes, from, count);
    return load(bytes);
  }

  // Written out because GCC 12 copies all sums at each of its own instructions for it.
  static Type add_products(Type sums, Type x, Type w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w));
    return sums;
  }
};

// As `in_parts` in int8_product.py, one token; gives its step.
float split(const float* x, int64_t in, uint8_t* high, uint8_t* low) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < in; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    largest = std::max(largest, bits & 0x7fffffff);
  }
  if (largest >= 0x7f800000) {
    std::memset(high, 0, in);
    std::memset(low, 0, in);
    return std::numeric_limits<float>::quiet_NaN();
  }
  constexpr int32_t kOneUp = 0x00800000;
  const int32_t power = ((largest + 0x0001ffff) & 0x7f800000) - 6 * kOneUp;
  const int32_t step_bits = std::max(power, 3 * kOneUp);
  float step;
  std::memcpy(&step, &step_bits, 4);
  const float steps = 1 / step;
  for (int64_t i = 0; i < in; ++i) {
    const int32_t parts = static_cast<int32_t>(std::rint(x[i] * steps * 256)) + 0x8000;
    high[i] = static_cast<uint8_t>(parts >> 8);
    low[i] = static_cast<uint8_t>(parts);
  }
  return step;
}

// Weights that are fetched from memory while others are multiplied, in the order in which
// they lie there: memory is up to three times as fast as where a tile's outputs take turns.
// All tiles of tokens fetch their share, for too many fetches at once hold up the rest.
struct Ahead {
  const int8_t* at;
  int64_t stride;

  void fetch() {
    constexpr int kLines = kOuts * Vector::kBytes / 64;
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(at + i * stride);
    at += kLines * stride;
  }
};

template <int Rows, typename Load>
inline __attribute__((always_inline)) void add_products(
    Vector::Type (&sums)[Rows][kOuts], const uint8_t* const (&x)[Rows],
    const int8_t* const (&w)[kOuts], int64_t at, Load load) {
  Vector::Type weights[kOuts];
#pragma GCC unroll 4
  for (int o = 0; o < kOuts; ++o) weights[o] = load(w[o] + at);
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const auto row = load(x[r] + at);
#pragma GCC unroll 4
    for (int o = 0; o < kOuts; ++o)
      sums[r][o] = Vector::add_products(sums[r][o], row, weights[o]);
  }
}

inline Quad sum_each(const Vector::Type (&sums)[kOuts]) {
  const auto add_pairs = [](__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  };
  const auto first = add_pairs(Vector::halved(sums[0]), Vector::halved(sums[1]));
  const auto last = add_pairs(Vector::halved(sums[2]), Vector::halved(sums[3]));
  const auto all = _mm256_add_epi32(_mm256_unpacklo_epi64(first, last),
                                    _mm256_unpackhi_epi64(first, last));
  return reinterpret_cast<Quad>(
      _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}

template <int Rows>
inline void multiply(const uint8_t* const (&x)[Rows], const int8_t* const (&w)[kOuts],
                     int64_t in, Ahead& ahead, Quad (&results)[Rows]) {
  Vector::Type sums[Rows][kOuts] = {};
  int64_t at = 0;
  for (; at + Vector::kBytes <= in; at += Vector::kBytes) {
    add_products<Rows>(sums, x, w, at, Vector::load);
    ahead.fetch();
  }
  if (at < in)
    add_products<Rows>(sums, x, w, at,
                       [=](auto* from) { return Vector::load_first(from, in - at); });
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) results[r] = sum_each(sums[r]);
}

template <typename Four, typename Number>
inline Four first(const Number* from, int count) {
  Four four{};
  std::memcpy(&four, from, count * sizeof(Number));
  return four;
}

struct Product {
  int64_t tokens, in, out;
  const uint8_t *high, *low;
  const float* step;
  const int8_t* values;
  const int32_t* value_sums;
  const float* scale;
  float* y;

  // The order of operations is that of int8_product.py.
  template <int Tokens>
  void finish(int64_t token, int64_t o, int count, const Quad (&sums)[2 * Tokens]) const {
    const auto middle = 128 * first<Quad>(value_sums + o, count);
    const auto scales = first<Floats>(scale + o, count);
    for (int t = 0; t < Tokens; ++t) {
      const auto low = sums[Tokens + t];
      const auto whole = sums[t] - middle + (low >> 8), rest = low & 255;
      const auto steps = __builtin_convertvector(whole, Floats) +
                         __builtin_convertvector(rest, Floats) / 256;
      const Floats results = (steps * scales) * step[token + t];
      std::memcpy(y + (token + t) * out + o, &results, count * sizeof(float));
    }
  }

  // As large tiles as there are tokens left for.
  template <int Tokens>
  void tiles(int64_t token, int64_t end, const int8_t* const (&w)[kOuts], int64_t o,
             int count, Ahead& ahead) const {
    for (; token + Tokens <= end; token += Tokens) {
      const uint8_t* rows[2 * Tokens];
      for (int t = 0; t < Tokens; ++t) {
        rows[t] = high + (token + t) * in;
        rows[Tokens + t] = low + (token + t) * in;
      }
      Quad sums[2 * Tokens];
      multiply<2 * Tokens>(rows, w, in, ahead, sums);
      if (count == kOuts)  // Known to the compiler where it is.
        finish<Tokens>(token, o, kOuts, sums);
      else
        finish<Tokens>(token, o, count, sums);
    }
    if constexpr (Tokens > 1)
      if (token < end) tiles<Tokens - 1>(token, end, w, o, count, ahead);
  }

  // Some outputs of all tokens. The weights come from memory for the first block of tokens,
  // and from the L2 cache for the others.
  void chunk(int64_t begin, int64_t end) const {
    const int64_t fitting = kBlockBytes / (2 * kTokens * std::max<int64_t>(in, 1));
    const int64_t block = kTokens * std::max<int64_t>(fitting, 1);
    const int64_t num_tiles = (std::min(block, tokens) + kTokens - 1) / kTokens;
    for (int64_t token = 0; token < tokens; token += block)
      for (int64_t o = begin; o < end; o += kOuts) {
        const int8_t* w[kOuts];
        for (int i = 0; i < kOuts; ++i) w[i] = values + std::min(o + i, out - 1) * in;
        Ahead ahead{w[0] + kAhead * kOuts * in, token == 0 ? 64 / num_tiles : 0};
        const int count = static_cast<int>(std::min<int64_t>(end - o, kOuts));
        tiles<kTokens>(token, std::min(token + block, tokens), w, o, count, ahead);
      }
  }

  // Outputs; in sixteens, so that seldom two threads write to one cache line.
  int64_t chunk_size(int64_t threads) const {
    if (threads == 1) return out;
    const int64_t bytes = std::clamp(in * out / (threads * kChunksPerThread),
                                     kLeastChunkBytes, kMostChunkBytes);
    return std::max<int64_t>(bytes / std::max<int64_t>(in, 1) / 16, 1) * 16;
  }
};

ffi::Error run(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> x,
               ffi::BufferR2<ffi::S8> values, ffi::BufferR1<ffi::S32> sums,
               ffi::BufferR1<ffi::F32> scale, ffi::Result<ffi::BufferR2<ffi::F32>> y) {
  const int64_t tokens = x.dimensions()[0], in = x.dimensions()[1];
  const int64_t out = values.dimensions()[0];
  const int64_t all = std::max<int64_t>(pool.num_threads(), 1);
  // Kept for the thread's next product.
  static thread_local std::vector<uint8_t> bytes;
  static thread_local std::vector<float> steps;
  bytes.resize(std::max<size_t>(bytes.size(), 2 * tokens * in));
  steps.resize(std::max<size_t>(steps.size(), tokens));
  uint8_t *const high = bytes.data(), *const low = high + tokens * in;
  float* const step = steps.data();
  const float* const given = x.typed_data();
  share(pool, tokens * in < kLeastToSplitTogether ? 1 : all, tokens, [=](int64_t token) {
    step[token] = split(given + token * in, in, high + token * in, low + token * in);
  });
  const Product product{tokens, in, out, high, low, step,
                        values.typed_data(), sums.typed_data(), scale.typed_data(),
                        y->typed_data()};
  const int64_t threads = 2 * tokens * in * out < kLeastForThreads ? 1 : all;
  const int64_t size = std::max<int64_t>(product.chunk_size(threads), 1);
  share(pool, threads, (out + size - 1) / size, [=](int64_t nth) {
    product.chunk(nth * size, std::min((nth + 1) * size, out));
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxserver

namespace ffi = xla::ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(int8_product, jaxserver::run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::S8>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());
