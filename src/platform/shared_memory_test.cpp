#include "platform/shared_memory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "platform/resources.h"
#include "platform/wait_word.h"

namespace deepscale {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// Runs body in a forked child; true when it returned true.
template <typename Body>
bool in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(SharedMemory, APeerThatOpensTheTokenSeesTheSameBytes) {
  for (const auto naming : {SharedMemory::Naming::kAnonymous, SharedMemory::Naming::kNamed}) {
    SharedMemory memory = SharedMemory::create(1 << 20, naming);
    memory.commit(0, 1 << 20);
    memory.data()[12345] = 'x';
    EXPECT_TRUE(in_child([&] {
      SharedMemory peer = SharedMemory::open(memory.token());
      if (peer.bytes() != 1 << 20 || peer.data()[12345] != 'x') return false;
      peer.data()[0] = 'y';
      return true;
    }));
    EXPECT_EQ(memory.data()[0], 'y');
  }
}

TEST(SharedMemory, AnUnlinkedNameCannotBeOpenedButStaysMapped) {
  SharedMemory memory = SharedMemory::create(4096, SharedMemory::Naming::kNamed);
  const SharedMemory peer = SharedMemory::open(memory.token());
  memory.unlink();
  EXPECT_THROW(SharedMemory::open(memory.token()), IoError);
  memory.data()[7] = 'z';
  EXPECT_EQ(peer.data()[7], 'z');
}

TEST(SharedMemory, ATerabyteCostsNothingAndDecommittedPagesReadAsZero) {
  SharedMemory memory = SharedMemory::create(int64_t{1} << 40);
  const int64_t far = int64_t{1} << 39;
  memory.commit(far, 1 << 20);
  memory.data()[far + 5] = 1;
  memory.decommit(far, 1 << 20);
  EXPECT_EQ(memory.data()[far + 5], 0);
}

TEST(SharedMemory, MoreThanTheMachineHasIsAnErrorThatSaysWhatToChange) {
  const int64_t too_much = (memory_facts().total_bytes * 2) >> 20 << 20;
  SharedMemory memory = SharedMemory::create(too_much);
  try {
    memory.commit(0, too_much);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("memory limit"), std::string::npos) << error.what();
  }
}

TEST(SharedMemory, TokensOfTheGoneAndTheForeignAreRefused) {
  std::string token;
  { token = SharedMemory::create(4096).token(); }
  EXPECT_THROW(SharedMemory::open(token), IoError);
  EXPECT_THROW(SharedMemory::open("/dev/null"), IoError);
}

TEST(WaitWord, WakesAcrossProcessesAndTimesOut) {
  SharedMemory memory = SharedMemory::create(4096);
  auto& word = *new (memory.data()) WaitWord(0);
  const auto start = steady_clock::now();
  wait_word(word, 0, milliseconds(20));
  EXPECT_GE(steady_clock::now() - start, milliseconds(15));
  wait_word(word, 1, std::chrono::seconds(10));  // differs: returns at once
  const pid_t child = fork();
  if (child == 0) {
    std::this_thread::sleep_for(milliseconds(30));
    word.store(1);
    wake_word_all(word);
    _exit(0);
  }
  while (word.load() == 0) wait_word(word, 0, std::chrono::seconds(10));
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
  waitpid(child, nullptr, 0);
}

TEST(Resources, CpusAndMemoryArePlausible) {
  EXPECT_GE(usable_cpu_count(), 1);
  EXPECT_LE(usable_cpu_count(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const MemoryFacts facts = memory_facts();
  EXPECT_GT(facts.total_bytes, 64 << 20);
  EXPECT_GT(facts.available_bytes, 0);
  EXPECT_LE(facts.available_bytes, facts.total_bytes);
}

TEST(Resources, LivenessKnowsZombiesAndReusedNumbers) {
  const ProcessIdentity self = this_process();
  EXPECT_TRUE(is_alive(self));
  EXPECT_FALSE(is_alive({self.pid, self.start_time + 1}));
  const pid_t child = fork();
  if (child == 0) _exit(0);
  siginfo_t info = {};
  waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);
  EXPECT_FALSE(is_alive({child, 0})) << "a zombie is not alive";
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(is_alive({child, 0}));
}

TEST(Resources, HostIdentityIsTheSameInAChildProcess) {
  const std::string identity = host_identity();
  EXPECT_FALSE(identity.empty());
  EXPECT_TRUE(in_child([&] { return host_identity() == identity; }));
}

}  // namespace
}  // namespace deepscale
