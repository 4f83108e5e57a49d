//! A page that stops whoever touches it, also from inside the kernel.
//!
//! A system call that copies from or to such a page while it holds a kernel lock keeps the lock until the page
//! is filled: a kernel lock held for a chosen time without a kernel module. The fault itself drops mmap_lock
//! before it sleeps, so it adds no lock contention.

use std::io;

use anyhow::{Context, Result, bail};

use crate::clock;
use crate::crew::Hold;
use crate::event::poll_readable;

// From linux/userfaultfd.h; the libc crate has none of it.
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_FORK: u8 = 0x13;
const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
/// ioctl on /dev/userfaultfd (Linux 6.1), the other way in where the system call is restricted.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct UffdMsg {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    flags: u64,
    address: u64,
    feature: u64,
}

/// A page that is registered with a userfaultfd.
struct WatchedPage {
    uffd: libc::c_int,
    page: *mut u8,
    size: usize,
}

impl WatchedPage {
    fn new(features: u64) -> Result<WatchedPage> {
        let uffd = open_userfaultfd()?;
        let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
        ioctl(uffd, UFFDIO_API, &mut api).context("UFFDIO_API")?;
        // SAFETY: sysconf only reads its argument.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let page = map(size)?;
        let mut register = UffdioRegister {
            start: page as u64,
            len: size as u64,
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        ioctl(uffd, UFFDIO_REGISTER, &mut register).context("UFFDIO_REGISTER")?;
        Ok(WatchedPage { uffd, page, size })
    }

    fn advise(&self, advice: libc::c_int) -> Result<()> {
        // SAFETY: the page was mapped by `new`, and no Rust value lives in it.
        if unsafe { libc::madvise(self.page.cast(), self.size, advice) } != 0 {
            return Err(io::Error::last_os_error()).context("madvise");
        }
        Ok(())
    }

    fn await_message(&self, what: &str) -> Result<()> {
        poll_readable(self.uffd, clock::deadline(), what)
    }

    fn read_message(&self) -> Result<UffdMsg> {
        let size = std::mem::size_of::<UffdMsg>();
        // SAFETY: all-zero bytes are a valid UffdMsg.
        let mut msg: UffdMsg = unsafe { std::mem::zeroed() };
        // SAFETY: at most `size` bytes are written to `msg`.
        let got = unsafe { libc::read(self.uffd, (&raw mut msg).cast(), size) };
        if got != size as isize {
            return Err(io::Error::last_os_error()).context("read from the userfaultfd");
        }
        Ok(msg)
    }
}

impl Drop for WatchedPage {
    /// Closing lets a thread that is stopped at the page go on; the mapping stays, because it may still use it.
    fn drop(&mut self) {
        // SAFETY: the descriptor belongs to this value and is not used again.
        unsafe { libc::close(self.uffd) };
    }
}

/// Stops the next fork of this process near its end: `dup_mmap` sleeps until its UFFD_EVENT_FORK is read
/// (fs/userfaultfd.c dup_userfaultfd_complete), after mmap_lock and before `uprobe_end_dup_mmap`.
pub struct ForkStop(WatchedPage);

impl ForkStop {
    pub fn new() -> Result<ForkStop> {
        Ok(ForkStop(WatchedPage::new(UFFD_FEATURE_EVENT_FORK).context("userfaultfd with fork events")?))
    }
}

impl Hold for ForkStop {
    fn prepare(&mut self) -> Result<()> {
        self.0.advise(libc::MADV_DOFORK)
    }

    /// Only the first fork copies the page, and stops; later ones leave it out.
    fn await_held(&mut self) -> Result<()> {
        self.0.await_message("the holder to fork")?;
        self.0.advise(libc::MADV_DONTFORK)
    }

    fn release(&mut self) -> Result<()> {
        let msg = self.0.read_message()?;
        if msg.event != UFFD_EVENT_FORK {
            bail!("unexpected userfaultfd event {:#x}", msg.event);
        }
        // The message brings a userfaultfd for the child's copy of the page.
        // SAFETY: the descriptor is new and not used again.
        unsafe { libc::close(msg.flags as u32 as libc::c_int) };
        Ok(())
    }
}

pub struct FaultPage {
    watched: WatchedPage,
    source: *mut u8,
}

impl FaultPage {
    pub fn new() -> Result<FaultPage> {
        let watched = WatchedPage::new(0)?;
        let source = map(watched.size)?;
        Ok(FaultPage { watched, source })
    }

    /// The address that stops whoever touches it.
    pub fn buffer(&self) -> UserBuffer {
        UserBuffer(self.watched.page as usize, self.watched.size)
    }
}

impl Hold for FaultPage {
    /// Takes the page away again, so that the next touch stops again. Between rounds no thread uses it.
    fn prepare(&mut self) -> Result<()> {
        self.watched.advise(libc::MADV_DONTNEED)
    }

    fn await_held(&mut self) -> Result<()> {
        self.watched.await_message("the holder to touch its page inside the kernel")?;
        let msg = self.watched.read_message()?;
        let ours = self.watched.page as u64..self.watched.page as u64 + self.watched.size as u64;
        if msg.event != UFFD_EVENT_PAGEFAULT || !ours.contains(&msg.address) {
            bail!("unexpected userfaultfd event {:#x} at {:#x}", msg.event, msg.address);
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        loop {
            let mut copy = UffdioCopy {
                dst: self.watched.page as u64,
                src: self.source as u64,
                len: self.watched.size as u64,
                mode: 0,
                copied: 0,
            };
            match ioctl(self.watched.uffd, UFFDIO_COPY, &mut copy) {
                Ok(()) => return Ok(()),
                // The memory map was changing; nothing was copied.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(error).context("UFFDIO_COPY"),
            }
        }
    }
}

/// Address and length of a buffer that only system calls touch.
#[derive(Clone, Copy)]
pub struct UserBuffer(usize, usize);

impl UserBuffer {
    /// An ordinary, present page: a system call with it is short once it has its lock.
    pub fn mapped() -> Result<UserBuffer> {
        // SAFETY: sysconf only reads its argument.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        Ok(UserBuffer(map(size)? as usize, size))
    }

    pub fn ptr<T>(self) -> *mut T {
        self.0 as *mut T
    }

    pub fn len(self) -> usize {
        self.1
    }
}

/// Maps one page and touches it, so that it is present.
fn map(size: usize) -> io::Result<*mut u8> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping, at an address of the kernel's choice, touches nothing that exists.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `size` bytes have just been mapped writable.
    unsafe { std::ptr::write_bytes(page.cast::<u8>(), b'x', size) };
    Ok(page.cast())
}

fn open_userfaultfd() -> Result<libc::c_int> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd >= 0 {
        return Ok(fd as libc::c_int);
    }
    let refused = io::Error::last_os_error();
    // SAFETY: the path is a NUL-terminated constant.
    let device = unsafe { libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if device >= 0 {
        // SAFETY: this request takes its flags by value.
        let fd = unsafe { libc::ioctl(device, USERFAULTFD_IOC_NEW as _, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        // SAFETY: `device` is ours and not used again.
        unsafe { libc::close(device) };
        if fd >= 0 {
            return Ok(fd);
        }
    }
    Err(refused).context("userfaultfd (run as root, or set vm.unprivileged_userfaultfd=1)")
}

fn ioctl<T>(fd: libc::c_int, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the struct that belongs to its request, and it lives through the call.
    match unsafe { libc::ioctl(fd, request as _, &raw mut *argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
