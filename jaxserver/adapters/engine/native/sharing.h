// How the threads that XLA gives a kernel share its work.
#pragma once

#if !defined(__AVX512VNNI__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#error "the processor has no AVX512-VNNI"
#endif

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace jaxserver {

namespace ffi = xla::ffi;

constexpr int kSpins = 1 << 12;

// Numbers below the normal ones are 0, as in the code that XLA makes. What is set is the
// thread's own.
class FlushedDenormals {
 public:
  FlushedDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushedDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

// Work that threads share, each taking the next piece until there is none. A thread that
// comes after that finds only this, which it holds, and nothing that `work` refers to.
template <typename Work>
struct Shared {
  Work work;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0};

  Shared(const Work& work, int64_t count) : work(work), count(count) {}

  void run() {
    const FlushedDenormals as_xla;
    for (int64_t i; (i = next.fetch_add(1)) < count; done.fetch_add(1)) work(i);
  }

  // For pieces that others have begun, which take microseconds, unless the system has put
  // somebody else in their place: then perhaps here is room for them.
  void wait() const {
    for (int spins = 0; done.load() < count; ++spins)
      spins < kSpins ? _mm_pause() : std::this_thread::yield();
  }
};

template <typename Work>
void share(ffi::ThreadPool& pool, int64_t threads, int64_t count, const Work& work) {
  auto shared = std::make_shared<Shared<Work>>(work, count);
  for (int64_t i = 1; i < std::min(threads, count); ++i)
    pool.Schedule([shared] { shared->run(); });
  shared->run();
  shared->wait();
}

}  // namespace jaxserver
