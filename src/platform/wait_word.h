// Sleeping on a word of shared memory until it changes. Linux: futex, across processes. Windows: WaitOnAddress wakes
// only threads of its own process, so wait_word sleeps there in slices of at most 1 ms; callers see no difference but
// time. Threads: any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace deepscale {

using WaitWord = std::atomic<uint32_t>;
static_assert(WaitWord::is_always_lock_free && sizeof(WaitWord) == 4);

/// Returns at once when word != expected; else after wake_word_all(word) or after `timeout`, or for no reason at all:
/// callers look at what they wait for again.
void wait_word(WaitWord& word, uint32_t expected, std::chrono::microseconds timeout);

/// Wakes everybody who sleeps on the word, in every process that has it mapped. The caller has changed it before.
void wake_word_all(WaitWord& word);

/// Tells the core that this is a spin loop.
inline void spin_pause() {
#if defined(_M_X64) && defined(_MSC_VER)
  _mm_pause();
#elif defined(_M_ARM64) && defined(_MSC_VER)
  __yield();
#elif defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Lets another thread have the core.
void yield_core();

}  // namespace deepscale
