#include "cuda/emulation/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <random>

#include "cuda/emulation/race.h"

namespace gpu::emulation {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr int kLanes = 32;
constexpr int kMostTeams = 15;
constexpr size_t kSharedAlignment = 1024;

Machine* machine = nullptr;
Counters counters;
uint64_t seed = 0;

const char* NameOf(Wait wait) {
  switch (wait) {
    case Wait::kNothing: return "runs";
    case Wait::kWarp: return "waits for its warp";
    case Wait::kTeam: return "waits for its team of warps";
    case Wait::kBlock: return "waits for its block";
    case Wait::kEnded: return "has returned";
  }
  return "?";
}

bool SamePlace(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

[[noreturn]] void NobodyCanGoOn() {
  const Machine& m = TheMachine();
  std::fprintf(stderr, "gpu emulation: no thread of block (%u, %u, %u) can go on\n", m.block.x, m.block.y, m.block.z);
  const CudaThread* last = nullptr;
  for (const CudaThread& thread : m.threads) {
    if (last == nullptr || last->wait != thread.wait || !SamePlace(last->where, thread.where)) {
      const auto index = static_cast<int>(&thread - m.threads.data());
      std::fprintf(stderr, "  warp %d lane %d and on: %s at %s:%u\n", index / kLanes, index % kLanes,
                   NameOf(thread.wait), thread.where.file_name(), static_cast<unsigned>(thread.where.line()));
    }
    last = &thread;
  }
  std::abort();
}

// The next in the ring that can run, or -1.
int NextThread(int from) {
  const Machine& m = TheMachine();
  int thread = m.next[from];
  for (size_t i = 0; i < m.threads.size(); ++i, thread = m.next[thread])
    if (m.threads[thread].wait == Wait::kNothing) return thread;
  return -1;
}

void SwitchTo(Fiber& from, int thread, bool ends) {
  Machine& m = TheMachine();
  m.current = thread;
  race::Become(thread);
  SwitchFiber(from, m.threads[thread].fiber, ends);
}

void RunThread() {
  EnterFiber(TheMachine().host);
  (*TheMachine().body)();
  Machine& m = TheMachine();
  CudaThread& self = Self();
  if (!self.copies.empty()) Fail("a thread returns before its asynchronous copies have arrived", self.where);
  self.wait = Wait::kEnded;
  if (++m.ended == static_cast<int>(m.threads.size())) SwitchFiber(self.fiber, m.host, true);
  const int next = NextThread(m.current);
  if (next < 0) NobodyCanGoOn();
  SwitchTo(self.fiber, next, true);
}

void RunBlock() {
  Machine& m = TheMachine();
  if (m.shared_bytes > 0) std::memset(m.shared, 0xFF, m.shared_bytes);  // NaN
  m.at_barrier = m.ended = 0;
  std::fill(m.warps.begin(), m.warps.end(), Warp{});
  m.teams.assign(kMostTeams, {});
  for (CudaThread& thread : m.threads) {
    thread.wait = Wait::kNothing;
    thread.group = 0;
    thread.where = {};
    PrepareFiber(thread.fiber, &RunThread);
  }
  ++counters.blocks;
  race::BeginBlock(m.shared, m.shared_bytes);
  SwitchTo(m.host, m.first, false);
  race::EndBlock();
}

// The order in which n things run.
std::vector<int64_t> Order(int64_t n, uint64_t salt) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (seed == 1) std::reverse(order.begin(), order.end());
  std::mt19937_64 random(seed + salt);
  if (seed > 1) std::shuffle(order.begin(), order.end(), random);
  return order;
}

void OrderThreads(Machine& m, int threads) {
  const std::vector<int64_t> warps = Order(threads / kLanes, 1);
  std::vector<int> order;
  for (const int64_t warp : warps)
    for (int lane = 0; lane < kLanes; ++lane) order.push_back(static_cast<int>(warp) * kLanes + lane);
  m.first = order[0];
  m.next.resize(threads);
  for (int i = 0; i < threads; ++i) m.next[order[i]] = order[(i + 1) % threads];
}

}  // namespace

Machine& TheMachine() { return *machine; }
Counters& Count() { return counters; }
CudaThread& Self() { return machine->threads[machine->current]; }

void SetSeed(uint64_t value) { seed = value; }
const Counters& Counted() { return counters; }
void ResetCounters() { counters = {}; }

void Fail(const char* what, const Where& where) {
  const Machine& m = TheMachine();
  std::fprintf(stderr, "gpu emulation: %s at %s:%u, warp %d lane %d of block (%u, %u, %u)\n", what, where.file_name(),
               static_cast<unsigned>(where.line()), m.current / kLanes, m.current % kLanes, m.block.x, m.block.y,
               m.block.z);
  std::abort();
}

void Yield() {
  Machine& m = TheMachine();
  const int self = m.current;
  const int next = NextThread(self);
  if (next < 0) NobodyCanGoOn();
  if (next != self) SwitchTo(m.threads[self].fiber, next, false);
}

void Meet(WarpOp op, const Where& where) {
  Machine& m = TheMachine();
  CudaThread& self = Self();
  self.where = where;
  Warp& warp = m.warps[m.current / kLanes];
  if (warp.arrived == 0) {
    warp.op = op;
    warp.where = where;
  } else if (warp.op != op || !SamePlace(warp.where, where)) {
    std::fprintf(stderr, "gpu emulation: %d lanes wait at %s:%u\n", warp.arrived, warp.where.file_name(),
                 static_cast<unsigned>(warp.where.line()));
    Fail("the warp has diverged: a lane is", where);
  }
  if (++warp.arrived < kLanes) {
    self.wait = Wait::kWarp;
    Yield();
    return;
  }
  warp.arrived = 0;
  CudaThread* const lanes = &m.threads[m.current / kLanes * kLanes];
  if (op == WarpOp::kSync) race::OrderWarp(m.current / kLanes);
  Execute(op, lanes);
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane].wait = Wait::kNothing;
}

void SyncThreads(Where where) {
  Machine& m = TheMachine();
  CudaThread& self = Self();
  self.where = where;
  if (m.at_barrier == 0) m.barrier = where;
  if (!SamePlace(m.barrier, where)) {
    std::fprintf(stderr, "gpu emulation: others wait at %s:%u\n", m.barrier.file_name(),
                 static_cast<unsigned>(m.barrier.line()));
    Fail("threads meet at different barriers: one is", where);
  }
  if (++m.at_barrier < static_cast<int>(m.threads.size())) {
    self.wait = Wait::kBlock;
    Yield();
    return;
  }
  m.at_barrier = 0;
  ++counters.barriers;
  race::OrderBlock();
  for (CudaThread& thread : m.threads)
    if (thread.wait == Wait::kBlock) thread.wait = Wait::kNothing;
}

void SyncTeam(int number, int warps, Where where) {
  Machine& m = TheMachine();
  CudaThread& self = Self();
  self.where = where;
  if (number < 0 || number >= kMostTeams || m.current / kLanes / warps != number)
    Fail("a thread waits for a team of warps that is not its own", where);
  Team& team = m.teams[number];
  if (team.arrived == 0) {
    team.warps = warps;
    team.where = where;
  }
  if (team.warps != warps || !SamePlace(team.where, where)) {
    std::fprintf(stderr, "gpu emulation: others wait at %s:%u\n", team.where.file_name(),
                 static_cast<unsigned>(team.where.line()));
    Fail("threads of a team meet at different barriers: one is", where);
  }
  if (++team.arrived < warps * kLanes) {
    self.wait = Wait::kTeam;
    Yield();
    return;
  }
  team.arrived = 0;
  race::OrderTeam(number * warps, warps);
  for (int thread = number * warps * kLanes; thread < (number + 1) * warps * kLanes; ++thread)
    m.threads[thread].wait = Wait::kNothing;
}

int Thread() { return TheMachine().current; }
int Threads() { return static_cast<int>(TheMachine().threads.size()); }
Dim Block() { return TheMachine().block; }
Dim Grid() { return TheMachine().grid; }
char* Shared() { return TheMachine().shared; }

void RunGrid(Dim grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  Machine m;
  machine = &m;
  m.threads.resize(threads);
  m.warps.resize(threads / kLanes);
  m.grid = grid;
  m.body = &body;
  OrderThreads(m, threads);
  char* const stacks = AllocateStacks(kStackBytes * threads);
  for (int i = 0; i < threads; ++i) {
    m.threads[i].fiber.stack = stacks + kStackBytes * i;
    m.threads[i].fiber.stack_bytes = kStackBytes;
  }
  // To the byte, so that AddressSanitizer sees what lies past it.
  m.shared_bytes = shared_bytes;
  m.shared = static_cast<char*>(::operator new(shared_bytes, std::align_val_t{kSharedAlignment}));
  ++counters.launches;
  for (const int64_t index : Order(int64_t{grid.x} * grid.y * grid.z, 2)) {
    const auto block = static_cast<uint64_t>(index);
    m.block = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
               static_cast<unsigned>(block / grid.x / grid.y)};
    RunBlock();
  }
  ::operator delete(m.shared, std::align_val_t{kSharedAlignment});
  FreeStacks(stacks, kStackBytes * threads);
  machine = nullptr;
}

}  // namespace gpu::emulation
