#include "platform/text_windows.h"
#include "platform/wait_word.h"

// After windows.h, whose types it uses.
#include <mmsystem.h>

#include <algorithm>

namespace deepscale {
namespace {

/// Without it a millisecond's sleep takes up to 16.
class FineTimer {
 public:
  FineTimer() { timeBeginPeriod(1); }
  ~FineTimer() { timeEndPeriod(1); }
  FineTimer(const FineTimer&) = delete;
  FineTimer& operator=(const FineTimer&) = delete;
};

}  // namespace

void wait_word(WaitWord& word, uint32_t expected, std::chrono::microseconds timeout) {
  using std::chrono::steady_clock;
  if (word.load() != expected) return;
  const FineTimer fine;
  const auto end = steady_clock::now() + timeout;
  // A wake from another process does not reach WaitOnAddress: look again after each millisecond.
  do {
    if (WaitOnAddress(&word, &expected, sizeof(expected), 1)) return;
  } while (word.load() == expected && steady_clock::now() < end);
}

void wake_word_all(WaitWord& word) {
  WakeByAddressAll(&word);
}

void yield_core() {
  if (!SwitchToThread()) Sleep(0);
}

}  // namespace deepscale
