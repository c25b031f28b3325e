// Whoever waits learns why: mismatches, missing peers, peers that left; and all ranks learn the first cause.
#include <gtest/gtest.h>

#include <latch>
#include <mutex>

#include "base/error.h"
#include "comm/host_test_support.h"
#include "comm/run_ranks.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

/// Long enough that threads of a busy machine, which only have to meet, do so.
HostOptions short_timeout() {
  HostOptions options = test_host_options();
  options.timeout = milliseconds(1500);
  return options;
}

/// What every rank's body threw, by rank; empty when it did not throw.
std::vector<std::string> errors_of(int size, const std::function<void(HostCommunicator&)>& body,
                                   const HostOptions& options) {
  std::vector<std::string> errors(static_cast<size_t>(size));
  run_ranks(
      size,
      [&](const std::shared_ptr<HostCommunicator>& comm) {
        try {
          body(*comm);
        } catch (const CommError& error) {
          errors[static_cast<size_t>(comm->rank())] = error.what();
        }
      },
      options);
  return errors;
}

testing::AssertionResult contains(const std::string& text, std::string_view part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << '"' << part << "\" is not in \"" << text << '"';
}

TEST(HostErrors, DifferentOperationsAreNamedOnBothSides) {
  const auto errors = errors_of(
      2,
      [](HostCommunicator& comm) {
        std::vector<float> data(64);
        if (comm.rank() == 0) {
          comm.all_reduce(data.data(), 32, DType::kFloat32, ReduceOp::kSum, "grads").wait();
        } else {
          comm.reduce_scatter(data.data(), data.data(), 32, DType::kFloat32, ReduceOp::kSum, "layers.7").wait();
        }
      },
      test_host_options());
  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "rank 0 is at all_reduce \"grads\" (#0, 32 x float32, sum)"));
    EXPECT_TRUE(contains(error, "rank 1 is at reduce_scatter \"layers.7\" (#0, 32 x float32, sum)"));
  }
}

TEST(HostErrors, CountTypeOperatorAndRootMustAgree) {
  const auto mismatch = [](const std::function<HostPending(HostCommunicator&, float*)>& post) {
    const auto errors = errors_of(
        2,
        [&](HostCommunicator& comm) {
          std::vector<float> data(8);
          post(comm, data.data()).wait();
        },
        test_host_options());
    return !errors[0].empty() && !errors[1].empty();
  };
  EXPECT_TRUE(mismatch([](HostCommunicator& comm, float* data) {
    return comm.all_reduce(data, 1 + comm.rank(), DType::kFloat32, ReduceOp::kSum);
  }));
  EXPECT_TRUE(mismatch([](HostCommunicator& comm, float* data) {
    return comm.all_reduce(data, 4, comm.rank() == 0 ? DType::kFloat32 : DType::kInt32, ReduceOp::kSum);
  }));
  EXPECT_TRUE(mismatch([](HostCommunicator& comm, float* data) {
    return comm.all_reduce(data, 4, DType::kFloat32, comm.rank() == 0 ? ReduceOp::kSum : ReduceOp::kMax);
  }));
  EXPECT_TRUE(mismatch([](HostCommunicator& comm, float* data) {
    // Both think that the other one is the root.
    return comm.broadcast(data, 4, DType::kFloat32, 1 - comm.rank());
  }));
}

TEST(HostErrors, AMissingPeerEndsTheWaitWithBothPositions) {
  std::latch given_up(2);
  const auto errors = errors_of(
      3,
      [&given_up](HostCommunicator& comm) {
        std::vector<float> data(4096);
        comm.all_gather(data.data(), data.data(), 1, DType::kFloat32, "layers.6").wait_released();
        if (comm.rank() == 1) {
          comm.set_position("step()");
          given_up.wait();
        }
        try {
          comm.all_reduce(data.data(), 4096, DType::kFloat32, ReduceOp::kAvg, "layers.7").wait();
        } catch (const CommError&) {
          if (comm.rank() != 1) given_up.count_down();
          throw;
        }
      },
      short_timeout());
  for (const int rank : {0, 2}) {
    const std::string& error = errors[static_cast<size_t>(rank)];
    EXPECT_TRUE(contains(error, "waits in all_reduce \"layers.7\" (#1, 4096 x float32, avg)"));
    EXPECT_TRUE(contains(error, "rank 1 has started is all_gather \"layers.6\" (#0, 1 x float32), it is in step()"));
  }
  EXPECT_TRUE(contains(errors[1], "failed: rank")) << "the late one learns that the others have given up";
}

TEST(HostErrors, ARankThatWaitsElsewhereIsReportedThere) {
  const auto errors = errors_of(
      2,
      [](HostCommunicator& comm) {
        const std::vector<int> both = {0, 1};
        const auto other = comm.subgroup(both);
        float value = 0;
        if (comm.rank() == 0) {
          comm.all_reduce(&value, 1, DType::kFloat32, ReduceOp::kSum, "first").wait();
        } else {
          other->all_reduce(&value, 1, DType::kFloat32, ReduceOp::kSum, "second").wait();
        }
      },
      short_timeout());
  const bool first_failed = errors[0].find("rank 1 is at all_reduce \"second\"") != std::string::npos;
  const bool second_failed = errors[0].find("rank 0 is at all_reduce \"first\"") != std::string::npos;
  EXPECT_TRUE(first_failed || second_failed) << errors[0];
}

TEST(HostErrors, ARankThatLeavesIsNoticedLongBeforeTheTimeout) {
  const auto start = std::chrono::steady_clock::now();
  const auto errors = errors_of(
      2,
      [](HostCommunicator& comm) {
        float value = 1;
        comm.all_reduce(&value, 1, DType::kFloat32, ReduceOp::kSum, "last").wait();
        if (comm.rank() == 1) return;
        comm.all_reduce(&value, 1, DType::kFloat32, ReduceOp::kSum, "never").wait();
      },
      test_host_options());
  EXPECT_LT(std::chrono::steady_clock::now() - start, test_host_options().timeout / 2);
  EXPECT_TRUE(contains(errors[0], "rank 1 has left the group"));
  EXPECT_TRUE(contains(errors[0], "the last operation that rank 1 has started is all_reduce \"last\""));
}

TEST(HostErrors, ARankThatThrowsDoesNotLeaveTheOthersWaiting) {
  try {
    run_ranks(3, [](const std::shared_ptr<HostCommunicator>& comm) {
      if (comm->rank() == 2) throw ConfigError("out of range");
      comm->barrier("end").wait();
    });
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "out of range") << "the first error, not its consequences";
  }
}

TEST(HostErrors, AfterAnErrorEveryUseFailsWithTheCauseOnEveryRank) {
  run_ranks(
      2,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        std::vector<float> data(10000);
        {
          HostPending abandoned = comm->all_reduce(data.data(), 10000, DType::kFloat32, ReduceOp::kSum, "a");
          if (comm->rank() == 0) {
            EXPECT_THROW(comm->barrier("b").wait(), CommError);
          } else {
            EXPECT_THROW(comm->all_gather(data.data(), data.data(), 1, DType::kFloat32, "c").wait(), CommError);
          }
        }
        EXPECT_THROW(std::ignore = comm->barrier("d"), CommError);
      },
      short_timeout());
}

TEST(HostErrors, RanksOnDifferentHostsAreToldToUseAnotherTransport) {
  const ThreadRendezvous threads(2);
  run_rank_threads(2, [&](int rank) {
    const HostRendezvous inner = threads.of_rank(rank);
    const HostRendezvous from_elsewhere = [&](std::string text) {
      const size_t line = text.find('\n') + 1;
      if (rank == 1) text.insert(line, "other-machine ");
      return inner(text);
    };
    const HostConnection connection = HostCommunicator::connect(rank, 2, from_elsewhere, test_host_options());
    EXPECT_EQ(connection.communicator, nullptr);
    EXPECT_TRUE(contains(connection.reason, "different hosts"));
  });
}

TEST(HostErrors, SubgroupsThatDoNotFitAreRefused) {
  run_ranks(3, [](const std::shared_ptr<HostCommunicator>& comm) {
    const std::vector<int> without_self = {(comm->rank() + 1) % 3};
    const std::vector<int> unsorted = {2, 1, 0};
    const std::vector<int> outside = {0, 1, 2, 3};
    EXPECT_THROW(std::ignore = comm->subgroup(without_self), CommError);
    EXPECT_THROW(std::ignore = comm->subgroup(unsorted), CommError);
    EXPECT_THROW(std::ignore = comm->subgroup(outside), CommError);
    const std::vector<int> mine = comm->rank() == 0 ? std::vector<int>{0, 1} : std::vector<int>{0, 1, 2};
    if (comm->rank() == 0) {
      EXPECT_THROW(std::ignore = comm->subgroup(mine), CommError);
    } else {
      EXPECT_THROW(std::ignore = comm->subgroup(mine), CommError);
    }
  });
}

}  // namespace
}  // namespace deepscale
