// Every implementation of Communicator does the same: self, host, Gloo, and Gloo with a host communicator beside it,
// over ranks that are threads. Values are small integers, so sums are exact in every dtype and results are compared as
// bits.
#include "comm/communicator.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "comm/process_group_gloo.h"
#include "comm/recording_communicator.h"
#include "comm/run_ranks.h"
#include "comm/torch_communicator.h"
#include "deepscale/error.h"

namespace deepscale {
namespace {

using Body = std::function<void(const Communicator&)>;

/// torch's flight recorder is one object per process and fills a map without a lock: off, before it is made, because
/// ranks are threads here.
const bool kNoFlightRecorder = setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1) == 0;

GlooOptions quick_gloo(std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
  GlooOptions options;
  options.timeout = timeout;
  options.address = "127.0.0.1";
  return options;
}

void run_gloo(int ranks, HostUse host_use, const Body& body,
              std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
  ASSERT_TRUE(kNoFlightRecorder);
  const auto store = TorchStore::in_memory();
  run_rank_threads(ranks, [&](int rank) {
    body(make_torch_communicator(make_gloo_group(store, rank, ranks, quick_gloo(timeout)), host_use));
  });
}

struct World {
  std::string kind;
  int ranks;

  void run(const Body& body) const {
    if (kind == "self") return body(Communicator::self());
    if (kind == "gloo") return run_gloo(ranks, HostUse::kNever, body);
    if (kind == "both") return run_gloo(ranks, HostUse::kAuto, body);
    run_ranks(ranks, [&](const std::shared_ptr<HostCommunicator>& host) {
      const auto log = std::make_shared<OperationLog>();
      log->enable(true);
      const Communicator plain = Communicator::host(host);
      body(kind == "recorded" ? recorded(plain, log) : plain);
    });
  }
};

class CommunicatorTest : public testing::TestWithParam<World> {};

INSTANTIATE_TEST_SUITE_P(AllWorlds, CommunicatorTest,
                         testing::Values(World{"self", 1}, World{"host", 2}, World{"host", 3}, World{"gloo", 2},
                                         World{"gloo", 3}, World{"both", 2}, World{"both", 4}, World{"recorded", 3}),
                         [](const auto& info) { return info.param.kind + std::to_string(info.param.ranks); });

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kChar,
                                      at::kByte,  at::kShort,    at::kInt,  at::kLong,   at::kBool};
constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kProduct};

/// What rank `rank` contributes: numbers 0..2 (booleans: both), different at every place and rank.
at::Tensor contribution(int rank, int64_t numel, at::ScalarType dtype) {
  const at::Tensor values = at::arange(numel, at::TensorOptions().dtype(at::kLong));
  return values.mul(7).add(5 * rank).remainder(dtype == at::kBool ? 2 : 3).to(dtype);
}

/// The reduction of all contributions, in double, then in the dtype.
at::Tensor expected_reduction(int ranks, int64_t numel, at::ScalarType dtype, ReduceOp op) {
  at::Tensor result = contribution(0, numel, dtype).to(at::kDouble);
  for (int rank = 1; rank < ranks; ++rank) {
    const at::Tensor next = contribution(rank, numel, dtype).to(at::kDouble);
    if (op == ReduceOp::kSum || op == ReduceOp::kAvg) result = result.add(next);
    if (op == ReduceOp::kMax) result = result.maximum(next);
    if (op == ReduceOp::kMin) result = result.minimum(next);
    if (op == ReduceOp::kProduct) result = result.mul(next);
  }
  if (op == ReduceOp::kAvg) result = result.div(ranks);
  return result.to(dtype);
}

void expect_equal(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  // Averages over three ranks are not exact: one rounding of the dtype is allowed there.
  const bool close = actual.is_floating_point() ? actual.allclose(expected, 8e-3, 0.0) : actual.equal(expected);
  EXPECT_TRUE(close) << what << ", dtype " << at::toString(actual.scalar_type());
}

std::string label(const Communicator& comm, ReduceOp op) {
  return comm.description() + ", rank " + std::to_string(comm.rank()) + ", " + std::string(name_of(op));
}

TEST_P(CommunicatorTest, KnowsItsRankAndSize) {
  std::atomic<int> ranks_seen = 0;
  GetParam().run([&](const Communicator& comm) {
    EXPECT_EQ(comm.size(), GetParam().ranks);
    ranks_seen.fetch_add(1 << (8 * comm.rank()));
    EXPECT_EQ(comm.shares_memory(), GetParam().kind != "gloo") << comm.description();
    EXPECT_NE(comm.description().find(std::to_string(comm.size()) + " rank"), std::string::npos);
  });
  int expected = 0;
  for (int rank = 0; rank < GetParam().ranks; ++rank) expected += 1 << (8 * rank);
  EXPECT_EQ(ranks_seen.load(), expected);
}

TEST_P(CommunicatorTest, AllReduceOfEveryDtypeAndOp) {
  GetParam().run([](const Communicator& comm) {
    for (const at::ScalarType dtype : kDtypes) {
      for (const ReduceOp op : kOps) {
        if (dtype == at::kBool && op == ReduceOp::kAvg) continue;
        const at::Tensor data = contribution(comm.rank(), 100, dtype);
        comm.all_reduce(data, op, "test").wait();
        expect_equal(data, expected_reduction(comm.size(), 100, dtype, op), label(comm, op));
      }
    }
  });
}

TEST_P(CommunicatorTest, ReduceScatterGivesEachRankItsSlice) {
  GetParam().run([](const Communicator& comm) {
    for (const at::ScalarType dtype : kDtypes) {
      for (const ReduceOp op : kOps) {
        if (dtype == at::kBool && op == ReduceOp::kAvg) continue;
        const int64_t slice = 33;
        const at::Tensor input = contribution(comm.rank(), slice * comm.size(), dtype);
        const at::Tensor output = at::zeros({slice}, input.options());
        const at::Tensor expected =
            expected_reduction(comm.size(), slice * comm.size(), dtype, op).narrow(0, slice * comm.rank(), slice);
        comm.reduce_scatter(input, output, op).wait();
        expect_equal(output, expected, label(comm, op));
        EXPECT_TRUE(input.equal(contribution(comm.rank(), slice * comm.size(), dtype))) << "input was changed";
      }
    }
  });
}

TEST_P(CommunicatorTest, ReduceScatterIntoASliceOfTheInput) {
  GetParam().run([](const Communicator& comm) {
    const int64_t slice = 1000;
    const at::Tensor input = contribution(comm.rank(), slice * comm.size(), at::kFloat);
    const at::Tensor output = input.narrow(0, slice * comm.rank(), slice);
    comm.reduce_scatter(input, output, ReduceOp::kAvg).wait();
    const at::Tensor all = expected_reduction(comm.size(), slice * comm.size(), at::kFloat, ReduceOp::kAvg);
    expect_equal(output, all.narrow(0, slice * comm.rank(), slice), label(comm, ReduceOp::kAvg));
  });
}

TEST_P(CommunicatorTest, AllGatherPutsContributionsInRankOrder) {
  GetParam().run([](const Communicator& comm) {
    for (const at::ScalarType dtype : kDtypes) {
      std::vector<at::Tensor> parts;
      for (int rank = 0; rank < comm.size(); ++rank) parts.push_back(contribution(rank, 17, dtype));
      const at::Tensor expected = at::cat(parts);
      const at::Tensor output = at::zeros_like(expected);
      comm.all_gather(contribution(comm.rank(), 17, dtype), output).wait();
      EXPECT_TRUE(output.equal(expected)) << comm.description() << " " << at::toString(dtype);

      const at::Tensor in_place = at::zeros_like(expected);
      const at::Tensor mine = in_place.narrow(0, 17 * comm.rank(), 17);
      mine.copy_(contribution(comm.rank(), 17, dtype));
      comm.all_gather(mine, in_place).wait();
      EXPECT_TRUE(in_place.equal(expected)) << comm.description() << " in place " << at::toString(dtype);
    }
  });
}

TEST_P(CommunicatorTest, BroadcastFromEveryRoot) {
  GetParam().run([](const Communicator& comm) {
    for (const at::ScalarType dtype : kDtypes) {
      for (int root = 0; root < comm.size(); ++root) {
        const at::Tensor data = contribution(comm.rank(), 65, dtype);
        comm.broadcast(data, root).wait();
        EXPECT_TRUE(data.equal(contribution(root, 65, dtype))) << comm.description() << " " << at::toString(dtype);
      }
    }
  });
}

TEST_P(CommunicatorTest, AllToAllTransposes) {
  GetParam().run([](const Communicator& comm) {
    for (const at::ScalarType dtype : kDtypes) {
      const int64_t slice = 11;
      const at::Tensor input = contribution(comm.rank(), slice * comm.size(), dtype);
      const at::Tensor output = at::zeros_like(input);
      comm.all_to_all(input, output).wait();
      for (int peer = 0; peer < comm.size(); ++peer) {
        const at::Tensor theirs = contribution(peer, slice * comm.size(), dtype).narrow(0, slice * comm.rank(), slice);
        EXPECT_TRUE(output.narrow(0, slice * peer, slice).equal(theirs)) << comm.description();
      }
    }
  });
}

TEST_P(CommunicatorTest, SendAndReceiveAroundARing) {
  GetParam().run([](const Communicator& comm) {
    if (comm.is_self()) {
      EXPECT_THROW(static_cast<void>(comm.send(at::zeros({1}), 0)), CommError);
      return;
    }
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    for (const at::ScalarType dtype : {at::kFloat, at::kShort}) {
      const at::Tensor incoming = at::zeros({50}, at::TensorOptions().dtype(dtype));
      Pending sent = comm.send(contribution(comm.rank(), 50, dtype), next);
      comm.recv(incoming, previous).wait();
      sent.wait_released();
      EXPECT_TRUE(incoming.equal(contribution(previous, 50, dtype))) << comm.description();
    }
  });
}

TEST_P(CommunicatorTest, OperationsMayBeWaitedForInAnyOrder) {
  GetParam().run([](const Communicator& comm) {
    std::vector<at::Tensor> tensors;
    std::vector<Pending> pending;
    for (int i = 0; i < 8; ++i) {
      tensors.push_back(
          at::full({64 + i}, static_cast<double>(i + comm.rank()), at::TensorOptions().dtype(at::kFloat)));
      pending.push_back(comm.all_reduce(tensors.back(), ReduceOp::kMax));
    }
    for (int i = 7; i >= 0; --i) {
      pending[static_cast<size_t>(i)].wait();
      EXPECT_EQ(tensors[static_cast<size_t>(i)].min().item<float>(), static_cast<float>(i + comm.size() - 1));
    }
  });
}

TEST_P(CommunicatorTest, WritingAParameterIsNoInPlaceChangeForAutograd) {
  GetParam().run([](const Communicator& comm) {
    const at::Tensor parameter = contribution(comm.rank(), 24, at::kFloat).view({4, 6}).requires_grad_();
    const auto version = parameter._version();
    comm.broadcast(parameter, 0).wait();
    comm.all_reduce(parameter, ReduceOp::kAvg).wait();
    EXPECT_EQ(parameter._version(), version);
    EXPECT_TRUE(parameter.is_leaf());
  });
}

// torch's own barrier shares a tensor among all threads of a process: without care, ranks that are threads free it
// twice.
TEST_P(CommunicatorTest, ManyBarriersPass) {
  GetParam().run([](const Communicator& comm) {
    for (int round = 0; round < 300; ++round) comm.barrier();
  });
}

// A group that is left at once is one that all ranks had joined.
TEST_P(CommunicatorTest, AGroupMayBeLeftAtOnce) {
  for (int round = 0; round < 5; ++round) EXPECT_NO_THROW(GetParam().run([](const Communicator&) {}));
}

TEST_P(CommunicatorTest, EmptyTensorsAndScalarsPass) {
  GetParam().run([](const Communicator& comm) {
    const at::Tensor empty = at::zeros({0});
    comm.all_reduce(empty, ReduceOp::kSum).wait();
    comm.all_gather(empty, empty).wait();
    const at::Tensor scalar = at::full({}, 1.0);
    comm.all_reduce(scalar, ReduceOp::kSum).wait();
    EXPECT_EQ(scalar.item<float>(), static_cast<float>(comm.size()));
    comm.barrier();
  });
}

TEST_P(CommunicatorTest, AllocatedMemoryIsZeroFilledAndAligned) {
  GetParam().run([](const Communicator& comm) {
    for (const int64_t numel : {int64_t{0}, int64_t{3}, int64_t{100000}}) {
      const at::Tensor data = comm.allocate(numel, at::kBFloat16, at::kCPU);
      ASSERT_EQ(data.numel(), numel);
      EXPECT_EQ(data.scalar_type(), at::kBFloat16);
      EXPECT_EQ(data.count_nonzero().item<int64_t>(), 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(data.data_ptr()) % 64, 0U);
      data.fill_(1);
      comm.all_reduce(data, ReduceOp::kSum).wait();
      if (numel > 0) {
        EXPECT_EQ(data.min().item<float>(), static_cast<float>(comm.size()));
      }
    }
  });
}

TEST_P(CommunicatorTest, AllocatedMemoryOutlivesTheCommunicator) {
  at::Tensor survivor;
  GetParam().run([&](const Communicator& comm) {
    const at::Tensor data = comm.allocate(1000, at::kFloat, at::kCPU);
    data.fill_(3);
    if (comm.rank() == 0) survivor = data;
  });
  EXPECT_EQ(survivor.sum().item<float>(), 3000.0F);
}

TEST_P(CommunicatorTest, CommonMemoryIsTheSameBytesEverywhere) {
  GetParam().run([](const Communicator& comm) {
    const std::optional<at::Tensor> common = comm.allocate_common(1024, at::kInt, at::kCPU);
    ASSERT_EQ(common.has_value(), comm.shares_memory());
    if (!common) return;
    EXPECT_EQ(common->count_nonzero().item<int64_t>(), 0);
    comm.barrier();
    common->narrow(0, comm.rank(), 1).fill_(comm.rank() + 1);
    comm.barrier();
    for (int rank = 0; rank < comm.size(); ++rank) EXPECT_EQ((*common)[rank].item<int>(), rank + 1);
    comm.barrier();
  });
}

TEST_P(CommunicatorTest, SubgroupsWorkBesideEachOther) {
  GetParam().run([](const Communicator& comm) {
    std::vector<int> mine;  // even and odd ranks
    for (int rank = comm.rank() % 2; rank < comm.size(); rank += 2) mine.push_back(rank);
    const Communicator part = comm.subgroup(mine);
    EXPECT_EQ(part.size(), static_cast<int>(mine.size()));
    EXPECT_EQ(mine[static_cast<size_t>(part.rank())], comm.rank());
    const at::Tensor data = at::full({10}, static_cast<double>(comm.rank() + 1));
    part.all_reduce(data, ReduceOp::kSum).wait();
    float expected = 0;
    for (const int rank : mine) expected += static_cast<float>(rank + 1);
    EXPECT_EQ(data.max().item<float>(), expected) << part.description();
    comm.barrier();
  });
}

TEST_P(CommunicatorTest, BytesMovedFollowThePublishedFormulas) {
  GetParam().run([](const Communicator& comm) {
    const int64_t ranks = comm.size();
    const int64_t numel = 120 * ranks;
    const at::Tensor full = at::zeros({numel});
    const at::Tensor slice = at::zeros({120});
    const int64_t bytes = numel * 4;
    int64_t before = comm.bytes_moved();
    comm.reduce_scatter(full, slice, ReduceOp::kSum).wait();
    EXPECT_EQ(comm.bytes_moved() - before, bytes * (ranks - 1) / ranks);
    before = comm.bytes_moved();
    comm.all_gather(slice, full).wait();
    EXPECT_EQ(comm.bytes_moved() - before, bytes * (ranks - 1) / ranks);
    before = comm.bytes_moved();
    comm.all_reduce(full, ReduceOp::kSum).wait();
    EXPECT_EQ(comm.bytes_moved() - before, 2 * bytes * (ranks - 1) / ranks);
  });
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

TEST_P(CommunicatorTest, WrongArgumentsAreNamedBeforeAnythingMoves) {
  GetParam().run([](const Communicator& comm) {
    const at::Tensor grid = at::zeros({4, 6});
    const auto discard = [](Pending pending) { pending.wait(); };
    EXPECT_NE(
        message_of([&] { discard(comm.all_reduce(grid.t(), ReduceOp::kSum, "w")); }).find("all_reduce of 'w': tensor"),
        std::string::npos);
    EXPECT_NE(message_of([&] { discard(comm.all_reduce(grid.t(), ReduceOp::kSum)); }).find("is not contiguous"),
              std::string::npos);
    EXPECT_NE(message_of([&] { discard(comm.all_reduce(at::Tensor(), ReduceOp::kSum)); }).find("undefined"),
              std::string::npos);
    EXPECT_NE(
        message_of([&] { discard(comm.all_gather(grid, at::zeros({7}))); }).find("input has 24 elements, output 7"),
        std::string::npos);
    EXPECT_NE(message_of([&] { discard(comm.all_gather(grid, grid.to(at::kHalf))); }).find("both must agree"),
              std::string::npos);
    EXPECT_NE(message_of([&] { discard(comm.all_reduce(grid.to(at::kBool), ReduceOp::kAvg)); }).find("has no average"),
              std::string::npos);
    EXPECT_NE(message_of([&] { discard(comm.broadcast(grid, comm.size())); }).find("outside the group's ranks"),
              std::string::npos);
    EXPECT_NE(message_of([&] { static_cast<void>(comm.subgroup({comm.size()})); }).find("subgroup: ranks ["),
              std::string::npos);
    comm.barrier();  // nobody is left behind
  });
}

TEST(TorchCommunicator, AMismatchNamesBothPositions) {
  run_gloo(
      2, HostUse::kNever,
      [](const Communicator& comm) {
        const std::string message = message_of([&] {
          if (comm.rank() == 0) comm.all_reduce(at::zeros({64}), ReduceOp::kSum, "layers.7").wait();
          if (comm.rank() == 1) comm.barrier("step");
        });
        EXPECT_NE(message.find("all_reduce of 'layers.7' (#1, Float x 64)"), std::string::npos) << message;
        EXPECT_NE(message.find("barrier of 'step' (#1"), std::string::npos) << message;
      },
      std::chrono::milliseconds(500));
}

TEST(TorchCommunicator, AMissingPeerIsAnErrorWithinTheTimeout) {
  const auto start = std::chrono::steady_clock::now();
  run_gloo(
      2, HostUse::kNever,
      [](const Communicator& comm) {
        if (comm.rank() == 1) return;
        const std::string message =
            message_of([&] { comm.all_reduce(at::zeros({64}), ReduceOp::kSum, "layers.7").wait(); });
        EXPECT_NE(message.find("rank 0 of 2: all_reduce of 'layers.7' (#1, Float x 64) failed"), std::string::npos);
        EXPECT_NE(message.find("rank 1 has not reported"), std::string::npos) << message;
      },
      std::chrono::milliseconds(500));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
}

TEST(Communicator, OperationsAreRecordedWhileTheLogIsEnabled) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& host) {
    const auto log = std::make_shared<OperationLog>();
    const Communicator comm = recorded(Communicator::host(host), log);
    const at::Tensor full = at::zeros({200}), half = at::zeros({100});
    comm.all_reduce(full, ReduceOp::kSum).wait();
    EXPECT_TRUE(log->take().empty());
    log->enable(true);
    comm.all_reduce(full, ReduceOp::kSum).wait();
    comm.reduce_scatter(full, half, ReduceOp::kSum).wait();
    comm.all_gather(half, full).wait();
    comm.subgroup({comm.rank()}).broadcast(half, 0).wait();
    comm.barrier();
    EXPECT_THROW(comm.broadcast(half, 7).wait(), CommError);
    const std::vector<OperationLog::Entry> entries = log->take();
    const auto text = [](const OperationLog::Entry& entry) {
      return fmt::format("{} {} {}", entry.operation, entry.bytes, entry.ranks);
    };
    std::vector<std::string> texts;
    for (const OperationLog::Entry& entry : entries) texts.push_back(text(entry));
    EXPECT_EQ(texts, (std::vector<std::string>{"all_reduce 800 2", "reduce_scatter_tensor 400 2",
                                               "all_gather_into_tensor 400 2", "broadcast 400 1", "barrier 0 2"}));
    for (const OperationLog::Entry& entry : entries) EXPECT_GE(entry.milliseconds, 0.0);
    EXPECT_TRUE(log->take().empty());
  });
}

TEST(Communicator, ADeviceWithoutABackendIsNamed) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& host) {
    const Communicator comm = Communicator::host(host);
    const at::Tensor meta = at::zeros({8}, at::TensorOptions().device(at::kMeta));
    EXPECT_NE(message_of([&] { comm.all_reduce(meta, ReduceOp::kSum).wait(); }).find("cannot move a tensor on meta"),
              std::string::npos);
  });
}

TEST(Communicator, DtypesWithoutADTypeAreRefused) {
  EXPECT_THROW(to_dtype(at::kComplexFloat), UnsupportedError);
  for (const at::ScalarType dtype : kDtypes) EXPECT_EQ(to_scalar_type(to_dtype(dtype)), dtype);
}

}  // namespace
}  // namespace deepscale
