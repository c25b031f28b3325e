#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <thread>

#include "base/error.h"
#include "comm/host_test_support.h"
#include "comm/run_ranks.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

using host_test::Buffer;
using Place = Buffer::Place;

constexpr DType kAllTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64, DType::kInt8,
                               DType::kUInt8,   DType::kInt16,    DType::kInt32,   DType::kInt64,   DType::kBool};
constexpr ReduceOp kAllOps[] = {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kProduct};
constexpr int kWorldSizes[] = {1, 2, 3, 4, 7};

/// Small staging, so that even short buffers take several pieces.
HostOptions small_staging() {
  HostOptions options = test_host_options();
  options.staging_bytes = 16 << 10;
  return options;
}

bool is_float(DType dtype) {
  return dtype <= DType::kFloat64;
}

/// A value that every dtype holds exactly, different for every rank and position.
int sample(int rank, int64_t index) {
  return static_cast<int>((rank * 7 + index * 3 + index / 5) % 11) - 3;
}

void put(char* data, DType dtype, int64_t index, double value) {
  const auto at = [&](auto typed) {
    std::memcpy(data + index * static_cast<int64_t>(sizeof(typed)), &typed, sizeof(typed));
  };
  switch (dtype) {
    case DType::kFloat64:
      return at(value);
    case DType::kInt8:
      return at(static_cast<int8_t>(value));
    case DType::kUInt8:
      return at(static_cast<uint8_t>(value));
    case DType::kInt16:
      return at(static_cast<int16_t>(value));
    case DType::kInt32:
      return at(static_cast<int32_t>(value));
    case DType::kInt64:
      return at(static_cast<int64_t>(value));
    case DType::kBool:
      return at(static_cast<uint8_t>(value != 0));
    default: {
      const auto single = static_cast<float>(value);
      kernels::convert(&single, DType::kFloat32, data + index * size_of(dtype), dtype, 1);
    }
  }
}

double get(const char* data, DType dtype, int64_t index) {
  const auto at = [&](auto typed) {
    std::memcpy(&typed, data + index * static_cast<int64_t>(sizeof(typed)), sizeof(typed));
    return static_cast<double>(typed);
  };
  switch (dtype) {
    case DType::kFloat64:
      return at(double{});
    case DType::kInt8:
      return at(int8_t{});
    case DType::kUInt8:
    case DType::kBool:
      return at(uint8_t{});
    case DType::kInt16:
      return at(int16_t{});
    case DType::kInt32:
      return at(int32_t{});
    case DType::kInt64:
      return at(int64_t{});
    default: {
      float single = 0;
      kernels::convert(data + index * size_of(dtype), dtype, &single, DType::kFloat32, 1);
      return single;
    }
  }
}

double input_value(DType dtype, int rank, int64_t index) {
  const int value = sample(rank, index);
  if (dtype == DType::kBool) return value > 0 ? 1 : 0;
  return dtype == DType::kUInt8 ? std::abs(value) : value;
}

void fill(char* data, DType dtype, int rank, int64_t count) {
  for (int64_t i = 0; i < count; ++i) put(data, dtype, i, input_value(dtype, rank, i));
}

/// What the reduction of element `index` over all ranks is, in exact arithmetic, rounded to the dtype.
double reduced_value(DType dtype, ReduceOp op, int size, int64_t index) {
  double value = input_value(dtype, 0, index);
  for (int rank = 1; rank < size; ++rank) {
    const double next = input_value(dtype, rank, index);
    if (op == ReduceOp::kMax) {
      value = std::max(value, next);
    } else if (op == ReduceOp::kMin) {
      value = std::min(value, next);
    } else if (op == ReduceOp::kProduct) {
      value *= next;
    } else {
      value += next;
    }
  }
  if (op == ReduceOp::kAvg) {
    value = is_float(dtype) ? static_cast<double>(static_cast<float>(value) * (1.0f / static_cast<float>(size)))
                            : std::trunc(value / size);
  }
  std::array<char, 8> cell = {};
  if (dtype == DType::kBool) return value != 0 ? 1 : 0;
  if (!is_float(dtype)) {  // integers wrap
    const auto whole = static_cast<int64_t>(value);
    std::memcpy(cell.data(), &whole, 8);
    return get(cell.data(), dtype, 0);
  }
  put(cell.data(), dtype, 0, value);
  return get(cell.data(), dtype, 0);
}

struct Case {
  DType dtype;
  ReduceOp op;
  int64_t count;
  Place place;
};

/// Compares `count` elements of data with what `expected` gives for 0..count-1.
template <typename Expected>
void expect_values(const char* data, const Case& test, int64_t count, const std::string& what,
                   const Expected& expected) {
  for (int64_t i = 0; i < count; ++i) {
    const double found = get(data, test.dtype, i);
    const double wanted = expected(i);
    const double tolerance = test.dtype == DType::kFloat64 ? 1e-6 * (1 + std::abs(wanted)) : 0;
    if (std::abs(found - wanted) <= tolerance) continue;
    FAIL() << what << " " << name_of(test.dtype) << " " << name_of(test.op) << " count " << test.count
           << (test.place == Place::kShared ? " shared" : " foreign") << ", element " << i << ": found " << found
           << ", expected " << wanted;
  }
}

void check_all_reduce(HostCommunicator& comm, const Case& test) {
  const Buffer data(comm, test.count * size_of(test.dtype), test.place);
  fill(data.data(), test.dtype, comm.rank(), test.count);
  comm.all_reduce(data.data(), test.count, test.dtype, test.op, "x").wait_released();
  expect_values(data.data(), test, test.count, "all_reduce",
                [&](int64_t i) { return reduced_value(test.dtype, test.op, comm.size(), i); });
}

void check_reduce_scatter(HostCommunicator& comm, const Case& test, bool in_place) {
  const int64_t slice = test.count * size_of(test.dtype);
  const Buffer input(comm, comm.size() * slice, test.place);
  const Buffer separate(comm, slice, test.place);
  fill(input.data(), test.dtype, comm.rank(), comm.size() * test.count);
  char* const output = in_place ? input.data() + comm.rank() * slice : separate.data();
  comm.reduce_scatter(input.data(), output, test.count, test.dtype, test.op, "x").wait_released();
  const int64_t first = comm.rank() * test.count;
  const auto reduced = [&](int64_t i) { return reduced_value(test.dtype, test.op, comm.size(), first + i); };
  expect_values(output, test, test.count, "reduce_scatter", reduced);
  expect_values(input.data(), test, comm.size() * test.count, "input of reduce_scatter", [&](int64_t i) {
    const bool written = in_place && i >= first && i < first + test.count;
    return written ? reduced(i - first) : input_value(test.dtype, comm.rank(), i);
  });
}

void check_all_gather(HostCommunicator& comm, const Case& test, bool in_place) {
  const int64_t slice = test.count * size_of(test.dtype);
  const Buffer output(comm, comm.size() * slice, test.place);
  const Buffer separate(comm, slice, test.place);
  char* const input = in_place ? output.data() + comm.rank() * slice : separate.data();
  fill(input, test.dtype, comm.rank(), test.count);
  comm.all_gather(input, output.data(), test.count, test.dtype, "x").wait_released();
  for (int peer = 0; peer < comm.size(); ++peer) {
    expect_values(output.data() + peer * slice, test, test.count, "all_gather",
                  [&](int64_t i) { return input_value(test.dtype, peer, i); });
  }
}

void check_broadcast(HostCommunicator& comm, const Case& test) {
  for (int root = 0; root < comm.size(); ++root) {
    const Buffer data(comm, test.count * size_of(test.dtype), test.place);
    fill(data.data(), test.dtype, comm.rank(), test.count);
    comm.broadcast(data.data(), test.count, test.dtype, root, "x").wait_released();
    expect_values(data.data(), test, test.count, "broadcast",
                  [&](int64_t i) { return input_value(test.dtype, root, i); });
  }
}

void check_all_to_all(HostCommunicator& comm, const Case& test) {
  const int64_t slice = test.count * size_of(test.dtype);
  const Buffer input(comm, comm.size() * slice, test.place);
  const Buffer output(comm, comm.size() * slice, test.place);
  fill(input.data(), test.dtype, comm.rank(), comm.size() * test.count);
  comm.all_to_all(input.data(), output.data(), test.count, test.dtype, "x").wait_released();
  for (int peer = 0; peer < comm.size(); ++peer) {
    expect_values(output.data() + peer * slice, test, test.count, "all_to_all",
                  [&](int64_t i) { return input_value(test.dtype, peer, comm.rank() * test.count + i); });
  }
}

/// Sizes from nothing to several pieces, most of them awkward.
constexpr int64_t kCounts[] = {0, 1, 67, 1021, 10007};

class Collectives : public testing::TestWithParam<int> {};

TEST_P(Collectives, ReductionsOfEveryTypeAndOperatorMatchTheReference) {
  run_ranks(
      GetParam(),
      [](const std::shared_ptr<HostCommunicator>& comm) {
        for (const DType dtype : kAllTypes) {
          for (const ReduceOp op : kAllOps) {
            if (dtype == DType::kBool && (op == ReduceOp::kAvg || op == ReduceOp::kSum)) continue;
            for (const int64_t count : {int64_t{67}, int64_t{2503}}) {
              for (const Place place : {Place::kShared, Place::kForeign}) {
                check_all_reduce(*comm, {dtype, op, count, place});
                check_reduce_scatter(*comm, {dtype, op, count, place}, /*in_place=*/false);
              }
            }
          }
        }
      },
      small_staging());
}

TEST_P(Collectives, EveryOperationWorksForEverySizeSharedForeignAndInPlace) {
  run_ranks(
      GetParam(),
      [](const std::shared_ptr<HostCommunicator>& comm) {
        for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
          for (const int64_t count : kCounts) {
            for (const Place place : {Place::kShared, Place::kForeign}) {
              const Case test{dtype, ReduceOp::kSum, count, place};
              check_all_reduce(*comm, test);
              check_broadcast(*comm, test);
              check_all_to_all(*comm, test);
              for (const bool in_place : {false, true}) {
                check_reduce_scatter(*comm, test, in_place);
                check_all_gather(*comm, test, in_place);
              }
            }
          }
        }
      },
      small_staging());
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, Collectives, testing::ValuesIn(kWorldSizes),
                         [](const auto& info) { return fmt::format("{}Ranks", info.param); });

TEST(HostCollectives, BuffersOfSomeRanksMayBeSharedAndOfOthersForeign) {
  run_ranks(
      4,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        const Place place = comm->rank() % 2 == 0 ? Place::kShared : Place::kForeign;
        for (const int64_t count : {int64_t{5}, int64_t{30011}}) {
          const Case test{DType::kFloat32, ReduceOp::kSum, count, place};
          check_all_reduce(*comm, test);
          check_reduce_scatter(*comm, test, /*in_place=*/true);
          check_all_gather(*comm, test, /*in_place=*/false);
          check_broadcast(*comm, test);
          check_all_to_all(*comm, test);
        }
      },
      small_staging());
}

void fill_random(float* data, int64_t count, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::uniform_real_distribution<float> value(-1, 1);
  for (int64_t i = 0; i < count; ++i) data[i] = value(random);
}

TEST(HostCollectives, AllReduceHasTheBitsOfReduceScatterAndAllGatherWhereverBuffersLie) {
  for (const int size : {2, 3, 7}) {
    run_ranks(
        size,
        [](const std::shared_ptr<HostCommunicator>& comm) {
          const int64_t slice = 20011;
          const int64_t count = slice * comm->size();
          std::vector<float> results[3];
          for (int variant = 0; variant < 3; ++variant) {
            const Buffer data(*comm, count * 4, variant == 1 ? Place::kForeign : Place::kShared);
            fill_random(data.as<float>(), count, comm->rank());
            if (variant < 2) {
              comm->all_reduce(data.data(), count, DType::kFloat32, ReduceOp::kAvg).wait_released();
            } else {
              float* const own = data.as<float>() + comm->rank() * slice;
              comm->reduce_scatter(data.data(), own, slice, DType::kFloat32, ReduceOp::kAvg).wait_released();
              comm->all_gather(own, data.data(), slice, DType::kFloat32).wait_released();
            }
            results[variant].assign(data.as<float>(), data.as<float>() + count);
          }
          EXPECT_EQ(0, std::memcmp(results[0].data(), results[1].data(), static_cast<size_t>(count) * 4));
          EXPECT_EQ(0, std::memcmp(results[0].data(), results[2].data(), static_cast<size_t>(count) * 4));
        },
        small_staging());
  }
}

TEST(HostCollectives, WaitsMayComeInAnyOrderAndDifferOnEveryRank) {
  run_ranks(
      3,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        std::mt19937 random(static_cast<unsigned>(comm->rank()));
        for (int round = 0; round < 20; ++round) {
          constexpr int kOperations = 80;  // more than the ring holds
          std::vector<std::unique_ptr<Buffer>> buffers;
          std::vector<HostPending> pending;
          for (int i = 0; i < kOperations; ++i) {
            const int64_t count = 1 + i * 37;
            const Place place = (i + round) % 3 == 0 ? Place::kForeign : Place::kShared;
            buffers.push_back(std::make_unique<Buffer>(*comm, count * 4, place));
            std::fill_n(buffers.back()->as<int32_t>(), count, comm->rank() + i);
            pending.push_back(
                comm->all_reduce(buffers.back()->data(), count, DType::kInt32, ReduceOp::kSum, fmt::format("{}", i)));
          }
          std::vector<size_t> order(kOperations);
          std::iota(order.begin(), order.end(), 0);
          std::shuffle(order.begin(), order.end(), random);
          for (const size_t i : order) {
            pending[i].wait();
            ASSERT_EQ(buffers[i]->as<int32_t>()[0], 3 + 3 * static_cast<int>(i));
            ASSERT_EQ(buffers[i]->as<int32_t>()[i * 37], 3 + 3 * static_cast<int>(i));
          }
        }
      },
      small_staging());
}

TEST(HostCollectives, GroupsInterleaveWithoutBlockingEachOther) {
  run_ranks(
      4,
      [](const std::shared_ptr<HostCommunicator>& world) {
        const int rank = world->rank();
        const std::vector<int> row = {rank / 2 * 2, rank / 2 * 2 + 1};
        const std::vector<int> column = {rank % 2, rank % 2 + 2};
        const auto row_group = world->subgroup(row);
        const auto column_group = world->subgroup(column);
        const auto alone = world->subgroup(std::vector<int>{rank});
        EXPECT_EQ(alone->size(), 1);
        for (int round = 0; round < 50; ++round) {
          std::vector<int64_t> values[3];
          for (auto& list : values) list.assign(2000, rank + round);
          HostPending pending[3] = {
              row_group->all_reduce(values[0].data(), 2000, DType::kInt64, ReduceOp::kSum, "row"),
              column_group->all_reduce(values[1].data(), 2000, DType::kInt64, ReduceOp::kSum, "column"),
              world->all_reduce(values[2].data(), 2000, DType::kInt64, ReduceOp::kSum, "world")};
          for (int i = 0; i < 3; ++i) pending[(i + rank) % 3].wait();
          ASSERT_EQ(values[0][1999], row[0] + row[1] + 2 * round);
          ASSERT_EQ(values[1][1999], column[0] + column[1] + 2 * round);
          ASSERT_EQ(values[2][1999], 6 + 4 * round);
        }
      },
      small_staging());
}

TEST(HostCollectives, ASubgroupOutlivesItsParentAndGroupsComeAndGoWithoutUsingUpMemory) {
  run_ranks(3, [](const std::shared_ptr<HostCommunicator>& world) {
    const std::vector<int> all = {0, 1, 2};
    std::shared_ptr<HostCommunicator> group = world;
    int64_t used = 0;
    for (int round = 0; round < 60; ++round) {
      group = world->subgroup(all);
      std::vector<float> data(3000, 1.0f);
      group->all_reduce(data.data(), 3000, DType::kFloat32, ReduceOp::kSum).wait();
      group->barrier().wait();
      if (round == 20) used = world->memory()->allocated_bytes();
    }
    EXPECT_LE(world->memory()->allocated_bytes(), 2 * used);
  });
  run_ranks(3, [](std::shared_ptr<HostCommunicator> world) {
    const std::vector<int> all = {0, 1, 2};
    const auto group = world->subgroup(all);
    world.reset();
    int64_t value = 1;
    group->all_reduce(&value, 1, DType::kInt64, ReduceOp::kSum).wait();
    EXPECT_EQ(value, 3);
  });
}

TEST(HostCollectives, EightRanksOnTwoCoresStaySane) {
  run_ranks(8, [](const std::shared_ptr<HostCommunicator>& comm) {
    int64_t value = 0;
    for (int round = 0; round < 300; ++round) {
      value = comm->rank();
      comm->all_reduce(&value, 1, DType::kInt64, ReduceOp::kSum).wait();
      ASSERT_EQ(value, 28);
    }
    const Case test{DType::kFloat32, ReduceOp::kSum, 100003, Place::kForeign};
    for (int round = 0; round < 3; ++round) check_all_reduce(*comm, test);
  });
}

TEST(HostCollectives, StagingIsReusedUnderStressWithoutMixingPiecesUp) {
  HostOptions options = test_host_options();
  options.staging_bytes = 4096;
  run_ranks(
      3,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        std::mt19937 random(5);  // the same on all ranks
        for (int round = 0; round < 120; ++round) {
          const auto count = static_cast<int64_t>(random() % 5000);
          const Case test{round % 2 == 0 ? DType::kInt32 : DType::kBFloat16, ReduceOp::kMax, count, Place::kForeign};
          switch (random() % 5) {
            case 0:
              check_all_reduce(*comm, test);
              break;
            case 1:
              check_reduce_scatter(*comm, test, round % 2 == 0);
              break;
            case 2:
              check_all_gather(*comm, test, round % 2 == 0);
              break;
            case 3:
              check_all_to_all(*comm, test);
              break;
            default:
              check_broadcast(*comm, test);
          }
        }
      },
      options);
}

TEST(HostCollectives, ThreadsOfOneRankMayUseDifferentGroups) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& world) {
    const std::vector<int> both = {0, 1};
    const auto other = world->subgroup(both);
    const auto work = [](HostCommunicator& comm) {
      for (int round = 0; round < 200; ++round) {
        std::vector<int32_t> data(1 + round * 20, 1);
        comm.all_reduce(data.data(), static_cast<int64_t>(data.size()), DType::kInt32, ReduceOp::kSum).wait();
        ASSERT_EQ(data.back(), 2);
      }
    };
    std::thread second([&] { work(*other); });
    work(*world);
    second.join();
  });
}

TEST(HostCollectives, BytesMovedFollowThePublishedFormulas) {
  run_ranks(4, [](const std::shared_ptr<HostCommunicator>& comm) {
    const int64_t full = 4 * 1024 * 4;  // bytes
    const Buffer data(*comm, full, Place::kShared);
    const Buffer other(*comm, full, Place::kShared);
    const auto moved = [&](HostPending pending) {
      pending.wait_released();
      static thread_local int64_t before = 0;
      const int64_t now = comm->bytes_moved();
      const int64_t delta = now - before;
      before = now;
      return delta;
    };
    EXPECT_EQ(moved(comm->all_reduce(data.data(), 4096, DType::kFloat32, ReduceOp::kSum)), 2 * full * 3 / 4);
    EXPECT_EQ(moved(comm->reduce_scatter(data.data(), other.data(), 1024, DType::kFloat32, ReduceOp::kSum)),
              full * 3 / 4);
    EXPECT_EQ(moved(comm->all_gather(other.data(), data.data(), 1024, DType::kFloat32)), full * 3 / 4);
    EXPECT_EQ(moved(comm->broadcast(data.data(), 4096, DType::kFloat32, 1)), comm->rank() == 1 ? 0 : full);
  });
}

}  // namespace
}  // namespace deepscale
