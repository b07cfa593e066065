//! The threads that run the virtual CPUs, and the gate that lets them run or holds them.
//!
//! Must never know: the control socket, boot protocols.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::bus::Bus;
use crate::ending::EndingSignal;
use crate::kvm::{self, Exit, ExitRequest, Vcpu, VcpuState};
use crate::mutex::lock;
use crate::rpc::ExitReason;
use crate::sandbox::filter;

/// A vCPU thread's stack: device emulation runs on it, nothing recurses.
const STACK_BYTES: usize = 256 << 10;

/// Why the vCPUs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM's part.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// No thread could be made.
    #[error("start the thread of vCPU {index}")]
    Thread {
        /// Which vCPU.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A vCPU runs, or is over.
    #[error("not all vCPUs stand still")]
    NotHeld,
    /// The signal that interrupts vCPUs cannot be handled.
    #[error("handle the signal that interrupts vCPUs")]
    Signal(#[source] io::Error),
}

/// What the vCPUs shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Hold,
    Run,
    Quit,
}

struct GateState {
    wanted: Wanted,
    /// How many vCPUs stand still.
    held: usize,
    /// How many threads have not ended.
    live: usize,
    /// What the vCPUs were asked for while they stand still.
    saving: Option<Saving>,
}

/// The states of all vCPUs, as each thread gives its own.
struct Saving {
    states: Vec<Option<Result<VcpuState, kvm::Error>>>,
    left: usize,
}

/// Where vCPUs stand still between runs.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// What accesses go to; there before any vCPU runs.
    buses: OnceLock<Buses>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }

    /// A vCPU waits until it may run; false if it shall quit. Meanwhile it gives its state if that is asked for.
    fn wait(&self, index: usize, vcpu: &Vcpu, exit: &ExitRequest) -> bool {
        let mut state = self.lock();
        if state.wanted == Wanted::Hold {
            state.held += 1;
            self.changed.notify_all();
            while state.wanted == Wanted::Hold {
                if let Some(saving) = &mut state.saving
                    && let Some(place @ None) = saving.states.get_mut(index)
                {
                    *place = Some(vcpu.save());
                    saving.left -= 1;
                    self.changed.notify_all();
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.held -= 1;
            vcpu.was_held();
        }
        // Under the lock: a request that comes later finds the flag cleared and sets it again.
        exit.clear();
        state.wanted == Wanted::Run
    }
}

struct Handle {
    thread: JoinHandle<()>,
    exit: Arc<ExitRequest>,
}

/// All vCPUs of one guest.
pub struct Vcpus {
    gate: Arc<Gate>,
    handles: Vec<Handle>,
}

/// The buses that the vCPUs' accesses go to.
pub struct Buses {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub registers: Bus,
}

impl Vcpus {
    /// Makes a thread for each of `vcpus`; all are held until [`Self::run`], before which they have to be connected. The threads
    /// begin while devices are made.
    ///
    /// # Errors
    /// No thread, no signal, or KVM's.
    pub fn spawn(vcpus: Vec<Vcpu>, ending: &EndingSignal) -> Result<Self, Error> {
        handle_kicks().map_err(Error::Signal)?;
        let filter = Arc::new(filter::of_vcpus());
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState { wanted: Wanted::Hold, held: 0, live: vcpus.len(), saving: None }),
            changed: Condvar::new(),
            buses: OnceLock::new(),
        });
        let mut all = Self { gate: gate.clone(), handles: Vec::with_capacity(vcpus.len()) };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let exit = Arc::new(vcpu.exit_request()?);
            let (gate, ending, thread_exit) = (gate.clone(), ending.clone(), exit.clone());
            let filter = filter.clone();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    let guard = LiveGuard { ending: &ending, gate: &gate };
                    match filter.as_ref().as_ref().map(|filter| seccompiler::apply_filter(filter)) {
                        None | Some(Ok(())) => run(index, vcpu, &guard, &thread_exit),
                        Some(Err(error)) => {
                            let what = format!("a vCPU thread cannot be confined: {error}");
                            ending.say(ExitReason::BootFailed, what);
                        }
                    }
                })
                .map_err(|source| Error::Thread { index, source })?;
            all.handles.push(Handle { thread, exit });
        }
        Ok(all)
    }

    /// Says what the vCPUs' accesses go to. Once.
    pub fn connect(&self, buses: Buses) {
        let connected = self.gate.buses.set(buses);
        assert!(connected.is_ok(), "invariant: vCPUs are connected once");
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        self.want(Wanted::Run);
    }

    /// Holds the vCPUs and returns when all stand still.
    pub fn hold(&self) {
        self.want(Wanted::Hold);
        let mut state = self.gate.lock();
        while state.wanted == Wanted::Hold && state.held < state.live {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The states of all vCPUs, which are held.
    ///
    /// # Errors
    /// KVM's, of the first that fails; a vCPU's thread has ended, or one runs.
    pub fn save(&self) -> Result<Vec<VcpuState>, Error> {
        let mut state = self.gate.lock();
        let count = self.handles.len();
        if state.wanted != Wanted::Hold || state.live < count {
            return Err(Error::NotHeld);
        }
        state.saving = Some(Saving { states: (0..count).map(|_| None).collect(), left: count });
        self.gate.changed.notify_all();
        while state.live == count && state.saving.as_ref().is_some_and(|saving| saving.left > 0) {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let states = state.saving.take().map(|saving| saving.states).unwrap_or_default();
        drop(state);
        states.into_iter().map(|state| state.ok_or(Error::NotHeld)?.map_err(Error::Kvm)).collect()
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.gate.lock();
        state.wanted = wanted;
        if wanted != Wanted::Run {
            for handle in &self.handles {
                handle.exit.set();
                kick(&handle.thread);
            }
        }
        self.gate.changed.notify_all();
    }

    /// Ends all threads and waits for them.
    pub fn quit(mut self) {
        self.want(Wanted::Quit);
        for handle in self.handles.drain(..) {
            if handle.thread.join().is_err() {
                tracing::error!("a vCPU thread ended by a panic");
            }
        }
    }
}

/// A machine that was not finished leaves no threads.
impl Drop for Vcpus {
    fn drop(&mut self) {
        self.want(Wanted::Quit);
    }
}

/// Counts the thread out at its end, and says that the guest is over should that be a panic: a guest without one of
/// its CPUs must not go on.
struct LiveGuard<'a> {
    ending: &'a EndingSignal,
    gate: &'a Gate,
}

impl Drop for LiveGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ending.say(ExitReason::Crashed, "the VMM failed inside: a vCPU thread panicked");
        }
        self.gate.lock().live -= 1;
        // Whoever waits for all vCPUs to stand still counts again.
        self.gate.changed.notify_all();
    }
}

fn run(index: usize, mut vcpu: Vcpu, LiveGuard { ending, gate }: &LiveGuard<'_>, exit: &ExitRequest) {
    while gate.wait(index, &vcpu, exit) {
        let buses = gate.buses.get().expect("invariant: vCPUs are connected before they run");
        loop {
            match vcpu.run(&buses.ports, &buses.registers) {
                Exit::Handled => {}
                Exit::Interrupted => break,
                Exit::Broken(message) => {
                    ending.say(ExitReason::Crashed, message);
                    gate.stand_still();
                    break;
                }
            }
        }
    }
}

impl Gate {
    /// The guest cannot go on: hold all vCPUs until someone reads the ending.
    fn stand_still(&self) {
        let mut state = self.lock();
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Hold;
        }
    }
}

/// The signal that makes a vCPU thread leave the guest.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The handler does nothing: the interrupted system call is the effect.
fn handle_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

fn kick(thread: &JoinHandle<()>) {
    if thread.is_finished() {
        return;
    }
    send(thread.as_pthread_t());
}

/// Sends the kick.
#[expect(unsafe_code, reason = "no safe wrapper signals one thread")]
fn send(thread: libc::pthread_t) {
    // SAFETY: the thread has not been joined (its handle is borrowed), so its identity is valid even if it has ended;
    // the signal has a handler.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}
