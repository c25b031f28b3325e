#include "platform/shared_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "platform/resources.h"
#include "platform/test_children.h"
#include "platform/wait_word.h"

namespace deepscale {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST(Children, DISABLED_ReadsAndWritesAPeersMemory) {
  const SharedMemory peer = SharedMemory::open(child_arguments().at(0));
  if (peer.bytes() != 1 << 20 || peer.data()[12345] != 'x') finish_child(1);
  peer.data()[0] = 'y';
  finish_child(0);
}

TEST(SharedMemory, APeerThatOpensTheTokenSeesTheSameBytes) {
  for (const auto naming : {SharedMemory::Naming::kAnonymous, SharedMemory::Naming::kNamed}) {
    SharedMemory memory = SharedMemory::create(1 << 20, naming);
    memory.commit(0, 1 << 20);
    memory.data()[12345] = 'x';
    TestChildren children;
    EXPECT_EQ(children.wait(children.start("ReadsAndWritesAPeersMemory", {memory.token()})), 0);
    EXPECT_EQ(memory.data()[0], 'y');
  }
}

TEST(Children, DISABLED_SeesWhatIsCommittedLater) {
  const SharedMemory peer = SharedMemory::open(child_arguments().at(0));
  auto& word = *reinterpret_cast<WaitWord*>(peer.data());
  word.store(1);
  wake_word_all(word);
  while (word.load() != 2) wait_word(word, 1, std::chrono::seconds(1));
  finish_child(peer.data()[(1 << 30) + 17] == 'z' ? 0 : 1);
}

TEST(SharedMemory, WhatTheCreatorCommitsLaterIsThereForPeersThatHaveMappedIt) {
  SharedMemory memory = SharedMemory::create(int64_t{4} << 30);
  memory.commit(0, 4096);
  auto& word = *new (memory.data()) WaitWord(0);
  TestChildren children;
  const ProcessId child = children.start("SeesWhatIsCommittedLater", {memory.token()});
  const auto end = steady_clock::now() + std::chrono::seconds(30);
  while (word.load() == 0 && steady_clock::now() < end) wait_word(word, 0, milliseconds(100));
  memory.commit(1 << 30, 1 << 20);
  memory.data()[(1 << 30) + 17] = 'z';
  word.store(2);
  wake_word_all(word);
  EXPECT_EQ(children.wait(child), 0);
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

TEST(Children, DISABLED_ChangesAWord) {
  const SharedMemory peer = SharedMemory::open(child_arguments().at(0));
  auto& word = *reinterpret_cast<WaitWord*>(peer.data());
  std::this_thread::sleep_for(milliseconds(30));
  word.store(1);
  wake_word_all(word);
  finish_child(0);
}

TEST(WaitWord, WakesAcrossProcessesAndTimesOut) {
  SharedMemory memory = SharedMemory::create(4096);
  memory.commit(0, 4096);
  auto& word = *new (memory.data()) WaitWord(0);
  const auto start = steady_clock::now();
  wait_word(word, 0, milliseconds(20));
  EXPECT_GE(steady_clock::now() - start, milliseconds(15));
  wait_word(word, 1, std::chrono::seconds(10));  // differs: returns at once
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
  TestChildren children;
  const ProcessId child = children.start("ChangesAWord", {memory.token()});
  const auto begin = steady_clock::now();
  while (word.load() == 0) wait_word(word, 0, std::chrono::seconds(30));
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(25));
  EXPECT_EQ(children.wait(child), 0);
}

TEST(Resources, CpusAndMemoryArePlausible) {
  EXPECT_GE(usable_cpu_count(), 1);
  EXPECT_LE(usable_cpu_count(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const MemoryFacts facts = memory_facts();
  EXPECT_GT(facts.total_bytes, 64 << 20);
  EXPECT_GT(facts.available_bytes, 0);
  EXPECT_LE(facts.available_bytes, facts.total_bytes);
}

TEST(Children, DISABLED_WaitsForALine) {
  std::ofstream(native_path(child_arguments().at(0)).c_str()) << this_process().start_time << std::endl;
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(60));
}

TEST(Resources, LivenessKnowsTheEndedAndReusedNumbers) {
  const ProcessIdentity self = this_process();
  EXPECT_NE(self.start_time, 0u);
  EXPECT_EQ(this_process(), self);
  EXPECT_TRUE(is_alive(self));
  EXPECT_TRUE(is_alive({self.pid, 0}));
  EXPECT_FALSE(is_alive({self.pid, self.start_time + 1}));
  const std::string path = test_path("liveness");
  TestChildren children;
  const ProcessId child = children.start("WaitsForALine", {path});
  wait_for_file(path);
  EXPECT_TRUE(is_alive({child, 0}));
  children.kill(child);
  for (int look = 0; look < 2000 && is_alive({child, 0}); ++look) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_FALSE(is_alive({child, 0})) << "a process that nobody has collected yet is not alive";
  EXPECT_EQ(children.wait(child), 137);
  EXPECT_FALSE(is_alive({child, 0}));
  remove_file(path);
}

TEST(Children, DISABLED_HasTheSameHost) {
  finish_child(host_identity() == child_arguments().at(0) ? 0 : 1);
}

TEST(Resources, HostIdentityIsTheSameInAChildProcess) {
  const std::string identity = host_identity();
  EXPECT_FALSE(identity.empty());
  TestChildren children;
  EXPECT_EQ(children.wait(children.start("HasTheSameHost", {identity})), 0);
}

TEST(Resources, APrivateFolderIsThisUsersAlone) {
  const std::string path = test_path("private_folder");
  EXPECT_TRUE(make_private_folder(path));
  EXPECT_TRUE(make_private_folder(path)) << "again";
  EXPECT_GE(this_user_id(), 0);
  remove_file(path);
  std::ofstream(native_path(path).c_str()) << "a file";
  EXPECT_FALSE(make_private_folder(path));
  remove_file(path);
}

}  // namespace
}  // namespace deepscale
