// A bell for each rank of a host, in a page that they share: who waits sleeps at his bell, and who rings it wakes him at once.
//
// A bell is two words: how often it rang, and whether somebody sleeps at it. To ring is one addition while nobody sleeps, and
// a call of the system otherwise. Nobody misses a bell: the system lets him sleep only while the bell has not rung since he
// looked. Linux only (futex). Uses no MPI.

#include <linux/futex.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstddef>
#include <cstdint>
#include <ctime>

namespace nb = nanobind;

namespace {

constexpr std::size_t words = 16;  // from one bell to the next: a cache line of its own

class Bell {
  public:
    using Page = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

    Bell(const Page &page, std::size_t place) : page_(page) {
        if ((place + 1) * words > page.size()) throw nb::value_error("the page has no such bell");
        rung_ = page.data() + place * words;
        sleeps_ = rung_ + 1;
    }

    std::uint32_t rung() const { return __atomic_load_n(rung_, __ATOMIC_SEQ_CST); }

    void ring() {
        __atomic_fetch_add(rung_, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(sleeps_, __ATOMIC_SEQ_CST)) futex(FUTEX_WAKE, INT_MAX, nullptr);
    }

    std::uint32_t sleep(std::uint32_t rung, double seconds) {
        nb::gil_scoped_release release;
        const auto whole = static_cast<std::time_t>(seconds);
        const std::timespec longest = {whole, static_cast<long>(1e9 * (seconds - static_cast<double>(whole)))};
        __atomic_store_n(sleeps_, 1, __ATOMIC_SEQ_CST);
        futex(FUTEX_WAIT, rung, &longest);  // it also ends for a signal, or at once if the bell has rung
        __atomic_store_n(sleeps_, 0, __ATOMIC_SEQ_CST);
        return this->rung();
    }

  private:
    void futex(int what, std::uint32_t value, const std::timespec *longest) const {
        syscall(SYS_futex, rung_, what, value, longest, nullptr, 0);
    }

    Page page_;  // keeps it
    std::uint32_t *rung_, *sleeps_;
};

struct Scheduling {  // sched_attr; the header that declares it does not go with those of glibc before 2.41
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
    std::uint32_t least, most;
};

// Linux ends sleeps up to 50 us late, to save wake-ups, and lets a process that wakes up wait for the end of another's slice
// unless its own is shorter (6.12 and later; older ones ignore it).
void be_prompt(double slice_s) {
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);  // ns
    Scheduling asked = {};
    if (syscall(SYS_sched_getattr, 0, &asked, sizeof asked, 0) == 0) {
        asked.runtime = static_cast<std::uint64_t>(1e9 * slice_s);
        syscall(SYS_sched_setattr, 0, &asked, 0);
    }
}

}  // namespace

void add_bells(nb::module_ &m) {
    using namespace nb::literals;
    nb::set_leak_warnings(false);  // a rank keeps its bells until the process ends
    m.def("be_prompt", &be_prompt, "slice_s"_a, "Let the system end this thread's sleeps on time, and run it soon after them.");
    nb::class_<Bell>(m, "Bell", "One bell of a page, uint32 (16 n,).")
        .def(nb::init<const Bell::Page &, std::size_t>(), "page"_a.noconvert(), "place"_a)
        .def("rung", &Bell::rung, "How often it has rung.")
        .def("ring", &Bell::ring, "Wake who sleeps at it.")
        .def("sleep", &Bell::sleep, "rung"_a, "seconds"_a,
             "Sleep until it has rung more often than that, or so long. Returns how often it has rung.");
}
