// The emulator itself: what it computes, and each broken rule that it must name.
#include "cuda/emulation/emulator.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "core/half.h"
#include "cuda/emulation/race.h"
#include "cuda/emulation/runtime.h"
#include "cuda/gpu.h"
#include "cuda/launch.h"

namespace kvshare::cuda {
namespace {

using gpu::emulation::RunGrid;

constexpr int kWarp = 32;

TEST(Emulator, RunsEveryThreadOfEveryBlockInEveryOrder) {
  for (const uint64_t seed : {0, 1, 9}) {
    gpu::emulation::SetSeed(seed);
    std::vector<int> ran(3 * 2 * 4 * 64);
    RunGrid({3, 2, 4}, 64, 0, [&] {
      const gpu::Dim block = gpu::Block();
      ++ran[((block.z * 2 + block.y) * 3 + block.x) * 64 + gpu::Thread()];
      EXPECT_EQ(gpu::Grid().z, 4U);
      EXPECT_EQ(gpu::Threads(), 64);
    });
    for (const int times : ran) EXPECT_EQ(times, 1);
  }
}

TEST(Emulator, SeedsAreOrdersOfWarpsAndBlocks) {
  const auto order = [](uint64_t seed) {
    gpu::emulation::SetSeed(seed);
    std::vector<int> ran;
    RunGrid({6}, 6 * kWarp, 0, [&] {
      if (gpu::Thread() % kWarp == 0) ran.push_back(static_cast<int>(gpu::Block().x) * 6 + gpu::Thread() / kWarp);
    });
    return ran;
  };
  std::vector<int> natural(36);
  std::iota(natural.begin(), natural.end(), 0);
  EXPECT_EQ(order(0), natural);
  EXPECT_EQ(order(1), std::vector<int>(natural.rbegin(), natural.rend()));
  EXPECT_TRUE(std::ranges::is_permutation(order(7), natural));
  EXPECT_NE(order(7), natural);
  EXPECT_NE(order(7), order(8));
}

TEST(Emulator, BarriersShowWhatOthersWrote) {
  RunGrid({}, 128, 128 * sizeof(int), [] {
    int* const shared = reinterpret_cast<int*>(gpu::Shared());
    shared[gpu::Thread()] = gpu::Thread();
    gpu::SyncThreads();
    EXPECT_EQ(shared[127 - gpu::Thread()], 127 - gpu::Thread());
  });
}

TEST(Emulator, TeamsOfWarpsWaitForTheirOwn) {
  for (const uint64_t seed : {0, 1, 9}) {
    gpu::emulation::SetSeed(seed);
    RunGrid({}, 128, 128 * sizeof(int), [] {
      int* const shared = reinterpret_cast<int*>(gpu::Shared());
      const int thread = gpu::Thread(), team = thread / 64, partner = thread ^ 63;
      for (int turn = 0; turn < 3 + team; ++turn) {  // the other team is not waited for
        shared[thread] = thread + turn;
        gpu::SyncTeam(team, 2);
        EXPECT_EQ(shared[partner], partner + turn);
        gpu::SyncTeam(team, 2);
      }
    });
  }
}

// Fibers never return, so AddressSanitizer holds what lay on their stacks for out of scope.
TEST(Emulator, LeavesNothingPoisonedWhereItsStacksWere) {
  for (int round = 0; round < 20; ++round) {
    RunGrid({}, 64, 0, [] { gpu::SyncThreads(); });
    constexpr size_t kBytes = size_t{4} << 20;
    void* const next = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(next, MAP_FAILED);
    std::memset(next, 1, kBytes);
    munmap(next, kBytes);
  }
}

TEST(Emulator, ShufflesBetweenLanes) {
  RunGrid({}, 64, 0, [] {
    const auto mine = static_cast<float>(gpu::Thread());
    EXPECT_EQ(gpu::ShuffleXor(mine, 5), static_cast<float>(gpu::Thread() ^ 5));
    EXPECT_EQ(gpu::Shuffle(mine, 3), static_cast<float>((gpu::Thread() & ~31) + 3));
  });
}

TEST(Emulator, EveryLaneHasABitOfItsWarpsBallot) {
  RunGrid({}, 64, 0, [] {
    const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
    EXPECT_EQ(gpu::Ballot(lane % 3 == warp), warp == 0 ? 0x49249249U : 0x92492492U);
    EXPECT_EQ(gpu::CountBits(gpu::Ballot(lane >= 20)), 12);
  });
}

TEST(Emulator, TransposesAMatrixBetweenLanes) {
  RunGrid({}, kWarp, 0, [] {
    const auto element = [](int row, int column) { return static_cast<uint32_t>(row * 8 + column); };
    const int g = gpu::Thread() / 4, t = gpu::Thread() % 4;
    const uint32_t two = gpu::MovMatrixTrans(element(g, 2 * t) | element(g, 2 * t + 1) << 16);
    EXPECT_EQ(two, element(2 * t, g) | element(2 * t + 1, g) << 16);
  });
}

TEST(Emulator, RoundsTo16BitsToNearestTiesToEven) {
  EXPECT_EQ(gpu::Pack2<gpu::Half>(1.0F, 2.0F), 0x40003C00U);
  EXPECT_EQ(gpu::Pack2<gpu::BF16>(1.0F, 2.0F), 0x40003F80U);
  EXPECT_EQ(gpu::Narrow<gpu::Half>(1.0F + 0x1p-11F), 0x3C00);
  EXPECT_EQ(gpu::Narrow<gpu::BF16>(1.0F + 0x3p-8F), 0x3F82);
  EXPECT_EQ(gpu::Widen<gpu::Half>(0x3C01), 1.0F + 0x1p-10F);
  EXPECT_EQ(gpu::Widen<gpu::BF16>(0x3F81), 1.0F + 0x1p-7F);
}

TEST(Emulator, PicksBytesAndMultipliesPairs) {
  EXPECT_EQ(gpu::PickBytes(0x33221100, 0x4013), 0x00001133U);
  // 1.5 * 2 + 0.25, -1 * 0.5 + 3
  EXPECT_EQ(gpu::MultiplyAdd2<gpu::Half>(0xBC003E00, 0x38004000, 0x42003400), 0x41004280U);
  EXPECT_EQ(gpu::MultiplyAdd2<gpu::BF16>(0xBF803FC0, 0x3F004000, 0x40403E80), 0x40204050U);
}

TEST(Emulator, WidensEveryCodeOfE4M3) {
  const auto same = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); };
  for (uint32_t code = 0; code < 256; ++code) {
    const uint32_t word = code << 8 | (255 - code) << 24 | 0x00380038;
    const uint32_t half = gpu::WidenE4M3<gpu::Half>(word, 1, 3), bf16 = gpu::WidenE4M3<gpu::BF16>(word, 1, 3);
    for (int i = 0; i < 2; ++i) {
      const float want = F32FromF8E4M3(static_cast<uint8_t>(word >> (8 + 16 * i)));
      EXPECT_TRUE(same(gpu::Widen<gpu::Half>(static_cast<uint16_t>(half >> (16 * i))), want)) << want;
      EXPECT_TRUE(same(gpu::Widen<gpu::BF16>(static_cast<uint16_t>(bf16 >> (16 * i))), want)) << want;
    }
  }
}

TEST(Emulator, SharedMemoryStartsAsNan) {
  RunGrid({2}, kWarp, 256, [] {
    float* const mine = reinterpret_cast<float*>(gpu::Shared()) + gpu::Thread();
    EXPECT_TRUE(std::isnan(*mine));
    *mine = 1;  // the next block starts afresh
  });
}

TEST(Emulator, AsynchronousCopiesArriveAtTheWaitAndNotBefore) {
  alignas(16) float source[4] = {1, 2, 3, 4};
  RunGrid({}, kWarp, 2 * 16 * kWarp, [&] {
    float* const a = reinterpret_cast<float*>(gpu::Shared()) + 4 * gpu::Thread();
    float* const b = a + 4 * kWarp;
    a[0] = b[0] = 7;
    gpu::CopyAsync(a, source, 16);
    gpu::CopyCommit();
    gpu::CopyAsync(b, source, 8);
    gpu::CopyCommit();
    EXPECT_TRUE(std::isnan(a[0]));
    gpu::CopyWait<1>();
    EXPECT_EQ(a[3], 4);
    EXPECT_TRUE(std::isnan(b[0]));
    gpu::CopyWait<0>();
    EXPECT_EQ(b[1], 2);
    EXPECT_EQ(b[2], 0);  // past the bytes that were read
  });
}

TEST(Emulator, CountsBankConflicts) {
  const auto conflicts = [](int row_bytes) {
    gpu::emulation::ResetCounters();
    RunGrid({}, kWarp, static_cast<size_t>(kWarp) * row_bytes, [&] {
      uint32_t r[4];
      gpu::LdMatrix(r, gpu::Shared() + gpu::Thread() * row_bytes);
    });
    return gpu::emulation::Counted().bank_conflicts;
  };
  EXPECT_EQ(conflicts(128), 4 * 7);  // all eight rows in one group of banks
  EXPECT_EQ(conflicts(128 + 16), 0);
  const auto of_loads = [](int lane_bytes) {
    gpu::emulation::ResetCounters();
    RunGrid({}, kWarp, 4096, [&] {
      float four[4];
      gpu::LoadShared(four, reinterpret_cast<const float*>(gpu::Shared() + gpu::Thread() * lane_bytes));
    });
    return gpu::emulation::Counted().bank_conflicts;
  };
  EXPECT_EQ(of_loads(128), 4 * 7);
  EXPECT_EQ(of_loads(32), 4);  // two turns for each eight lanes
  EXPECT_EQ(of_loads(16), 0);
  EXPECT_EQ(of_loads(0), 0);  // one piece for all
}

using EmulatorDeathTest = ::testing::Test;

TEST(EmulatorDeathTest, LanesThatMeetAtDifferentOperationsAreNamed) {
  const auto body = [] {
    if (gpu::Thread() == 9)
      gpu::ShuffleXor(0, 2);
    else
      gpu::ShuffleXor(0, 1);
  };
  EXPECT_DEATH(RunGrid({}, kWarp, 0, body),
               "the warp has diverged: a lane is at .*emulator_test.cc:[0-9]+, warp 0 lane 9");
}

TEST(EmulatorDeathTest, ABlockInWhichNobodyCanGoOnIsNamed) {
  EXPECT_DEATH(RunGrid({}, 64, 0,
                       [] {
                         if (gpu::Thread() < 33) gpu::SyncThreads();
                       }),
               "no thread of block \\(0, 0, 0\\) can go on(.|\n)*warp 0 lane 0 and on: waits for its block");
  EXPECT_DEATH(RunGrid({}, kWarp, 0,
                       [] {
                         if (gpu::Thread() != 3) gpu::SyncWarp();
                       }),
               "waits for its warp(.|\n)*lane 3 and on: has returned");
}

TEST(EmulatorDeathTest, ThreadsThatMeetAtDifferentBarriersAreNamed) {
  const auto body = [] {  // a macro's argument would be one line
    if (gpu::Thread() < kWarp)
      gpu::SyncThreads();
    else
      gpu::SyncThreads();
  };
  EXPECT_DEATH(RunGrid({}, 64, 0, body), "others wait at (.|\n)*threads meet at different barriers: one is at");
}

TEST(EmulatorDeathTest, WarpsThatWaitForAnothersTeamAreNamed) {
  const auto body = [] {
    if (gpu::Thread() < 64)
      gpu::SyncTeam(0, 2);
    else
      gpu::SyncTeam(0, 2);
  };
  EXPECT_DEATH(RunGrid({}, 96, 0, body), "waits for a team of warps that is not its own at .*, warp 2 lane 0");
  const auto lines = [] {
    if (gpu::Thread() < kWarp)
      gpu::SyncTeam(0, 2);
    else
      gpu::SyncTeam(0, 2);
  };
  gpu::emulation::SetSeed(0);
  EXPECT_DEATH(RunGrid({}, 64, 0, lines), "others wait at (.|\n)*threads of a team meet at different barriers");
  EXPECT_DEATH(RunGrid({}, 64, 0,
                       [] {
                         if (gpu::Thread() != 3) gpu::SyncTeam(0, 2);
                       }),
               "waits for its team of warps");
}

TEST(EmulatorDeathTest, MisalignedAndForeignRowsAreNamed) {
  uint32_t r[4];
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::LdMatrix(r, gpu::Shared() + 8); }), "not 16-byte aligned");
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::LdMatrix(r, gpu::Shared() + 1024); }), "outside shared memory");
  const auto load = [](int at) {
    float four[4];
    gpu::LoadShared(four, reinterpret_cast<const float*>(gpu::Shared() + at));
  };
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { load(8); }), "LoadShared of what is not 16-byte aligned");
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { load(1024); }), "LoadShared from outside shared memory");
  alignas(16) char source[32];
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::CopyAsync(gpu::Shared(), source + 4, 16); }), "not 16-byte aligned");
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::CopyAsync(gpu::Shared() + 1024, source, 16); }), "outside shared");
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::CopyAsync(gpu::Shared(), source, 17); }), "outside 0 to 16");
}

TEST(EmulatorDeathTest, ACopyNobodyWaitedForIsNamed) {
  alignas(16) char source[16] = {};
  EXPECT_DEATH(RunGrid({}, kWarp, 1024, [&] { gpu::CopyAsync(gpu::Shared() + 16 * gpu::Thread(), source, 16); }),
               "returns before its asynchronous copies have arrived at .*emulator_test.cc");
}

#if defined(KVSHARE_CUDA_RACE)

// Accesses that the compiler reports by itself in kernels; this file is compiled without.
void Touch(int place, bool write) { gpu::emulation::race::Access(gpu::Shared() + 4 * place, 4, write, nullptr); }

TEST(EmulatorDeathTest, AccessesThatNoBarrierOrdersAreNamed) {
  const auto neighbour = [](bool first, bool then, int threads, int distance) {
    RunGrid({}, threads, 4096, [=] {
      if (gpu::Thread() == 0) Touch(0, first);
      if (gpu::Thread() == distance) Touch(0, then);
    });
  };
  gpu::emulation::SetSeed(0);
  EXPECT_DEATH(neighbour(true, false, 64, 1), "read after write; thread 1 .* after a thread of warp 0");
  EXPECT_DEATH(neighbour(false, true, 64, 40), "write after read; thread 40");
  EXPECT_DEATH(neighbour(true, true, 64, 40), "write after write; thread 40");
  EXPECT_DEATH(RunGrid({}, 64, 4096,
                       [] {
                         if (gpu::Thread() == 0) Touch(0, true);
                         gpu::SyncWarp();  // orders one warp only
                         if (gpu::Thread() == 40) Touch(0, false);
                       }),
               "read after write");
  EXPECT_DEATH(RunGrid({}, kWarp, 4096,
                       [] {
                         Touch(0, false);  // all lanes
                         if (gpu::Thread() == 3) Touch(0, true);
                       }),
               "write after read");
  EXPECT_DEATH(RunGrid({}, 128, 4096,
                       [] {
                         if (gpu::Thread() == 0) Touch(0, true);
                         gpu::SyncTeam(gpu::Thread() / 64, 2);  // orders two warps only
                         if (gpu::Thread() == 70) Touch(0, false);
                       }),
               "read after write; thread 70 .* after a thread of warp 0");
  EXPECT_DEATH(RunGrid({}, 64, 4096,
                       [] {
                         gpu::SyncTeam(0, 2);
                         Touch(0, false);  // both warps
                         gpu::SyncWarp();
                         if (gpu::Thread() == 40) Touch(0, true);
                       }),
               "write after read; thread 40");
}

TEST(EmulatorDeathTest, AccessesThatOnlyAShuffleOrdersAreNamed) {
  EXPECT_DEATH(RunGrid({}, kWarp, 4096,
                       [] {
                         if (gpu::Thread() == 0) Touch(0, true);
                         gpu::ShuffleXor(0, 1);
                         if (gpu::Thread() == 5) Touch(0, false);
                       }),
               "read after write; thread 5");
}

TEST(EmulatorDeathTest, CopiesWriteAtTheWaitToo) {
  alignas(16) static const char source[16] = {};
  EXPECT_DEATH(RunGrid({}, kWarp, 4096,
                       [] {
                         gpu::CopyAsync(gpu::Shared() + 16 * gpu::Thread(), source, 16);
                         gpu::CopyCommit();
                         gpu::SyncWarp();  // orders the issue alone
                         gpu::CopyWait<0>();
                         Touch(4 * (31 - gpu::Thread()), false);
                       }),
               "(write after read|read after write)");
}

TEST(Emulator, TeamsOrderAccesses) {
  RunGrid({}, 128, 4096, [] {
    const int team = gpu::Thread() / 64;
    Touch(gpu::Thread(), true);
    gpu::SyncTeam(team, 2);
    Touch(gpu::Thread() ^ 63, false);
    Touch(team * 64, false);
    gpu::SyncTeam(team, 2);
    Touch(gpu::Thread() ^ 32, true);
  });
}

TEST(Emulator, BarriersOrderAccesses) {
  RunGrid({}, 64, 4096, [] {
    Touch(gpu::Thread() / kWarp * kWarp + gpu::Thread() * 7 % kWarp, false);
    gpu::SyncWarp();
    Touch(gpu::Thread(), true);
    gpu::SyncThreads();
    Touch(63 - gpu::Thread(), false);
    gpu::SyncThreads();
    Touch(gpu::Thread(), true);
  });
}

#endif

void AnyKernel() {}

TEST(EmulatedRuntime, RefusesWhatADeviceRefuses) {
  emulation::SetDevice({8, size_t{99} << 10});
  EXPECT_TRUE(Launch(&AnyKernel, {{1}, kWarp, size_t{48} << 10}, nullptr).ok());
  EXPECT_EQ(Launch(&AnyKernel, {{1}, kWarp, size_t{49} << 10}, nullptr).message(),  // has not asked
            "emulated CUDA: a launch of (1, 1, 1) blocks of 32 threads and 50176 shared bytes; needs y and z up to "
            "65535, whole warps up to 1024 threads and at most 49152 bytes");
  EXPECT_TRUE(AllowShared(&AnyKernel, size_t{99} << 10).ok());
  EXPECT_TRUE(Launch(&AnyKernel, {{1}, kWarp, size_t{49} << 10}, nullptr).ok());
  EXPECT_EQ(AllowShared(&AnyKernel, size_t{100} << 10).message(),
            "emulated CUDA: a kernel asks for 102400 bytes of shared memory; needs at most 101376");
  EXPECT_FALSE(Launch(&AnyKernel, {{0}, kWarp, 0}, nullptr).ok());
  EXPECT_FALSE(Launch(&AnyKernel, {{1, 65536}, kWarp, 0}, nullptr).ok());
  EXPECT_FALSE(Launch(&AnyKernel, {{1}, 2048, 0}, nullptr).ok());
  EXPECT_FALSE(Launch(&AnyKernel, {{1}, 40, 0}, nullptr).ok());
}

TEST(EmulatedRuntime, RefusesAllocationAndWaitingWhileAStreamIsCaptured) {
  int stream = 0;
  void* const before = *Allocate(16);
  ASSERT_TRUE(BeginCapture(&stream).ok());
  EXPECT_EQ(Allocate(16).status().message(), "emulated CUDA: memory is allocated while a stream is captured");
  EXPECT_EQ(Free(before).message(), "emulated CUDA: memory is freed while a stream is captured");
  EXPECT_EQ(Upload(before, &stream, 4).message(), "emulated CUDA: memory is copied while a stream is captured");
  EXPECT_EQ(Download(&stream, before, 4).message(), "emulated CUDA: memory is copied while a stream is captured");
  EXPECT_EQ(Synchronize(&stream).message(), "emulated CUDA: the host waits for a stream while a stream is captured");
  EXPECT_EQ(CopyOnDevice(before, before, 4, &stream).message(),
            "emulated CUDA: memory is copied while a stream is captured");
  EXPECT_EQ(AllowShared(&AnyKernel, 1).message(),
            "emulated CUDA: a function attribute is set while a stream is captured");
  EXPECT_EQ(Launch(&AnyKernel, {{1}, kWarp, 0}, nullptr).message(),
            "emulated CUDA: another stream gets a launch while a stream is captured");
  EXPECT_EQ(BeginCapture(&stream).message(), "emulated CUDA: a capture begins while a stream is captured");
  ASSERT_TRUE(EndCapture(&stream).ok());
  EXPECT_TRUE(Free(before).ok());
  EXPECT_EQ(EndCapture(&stream).status().message(), "emulated CUDA: the stream is not captured");
  EXPECT_EQ(BeginCapture(nullptr).message(), "emulated CUDA: the default stream cannot be captured");
}

}  // namespace
}  // namespace kvshare::cuda
