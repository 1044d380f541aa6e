//! System calls a container may make: the profile `RuntimeDefault`, in the sense of containerd's default profile.
//!
//! It is a list of what is allowed; anything else is answered EPERM, of which the caller hears as of any lack of rights. Some calls
//! come with a capability. Programs of another architecture than the host's (32 bits) are killed.
//! <https://github.com/containerd/containerd/blob/main/contrib/seccomp/seccomp_default.go>

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::RuntimeError;

/// What no container needs a right for, on every machine.
#[rustfmt::skip]
const ALLOWED: &[c_long] = {
    use libc::*;
    &[
        SYS_accept, SYS_accept4, SYS_adjtimex, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_chdir,
        SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone3, SYS_close,
        SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_dup, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl,
        SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group,
        SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod,
        SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr,
        SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex,
        SYS_futex_waitv, SYS_get_robust_list, SYS_getcpu, SYS_getcwd, SYS_getdents64, SYS_getegid, SYS_geteuid,
        SYS_getgid, SYS_getgroups, SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpid, SYS_getppid,
        SYS_getpriority, SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_getrusage, SYS_getsid,
        SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr,
        SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel, SYS_io_destroy,
        SYS_io_getevents, SYS_io_setup, SYS_io_submit, SYS_ioctl, SYS_ioprio_get, SYS_ioprio_set, SYS_kill,
        SYS_landlock_add_rule, SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_lgetxattr,
        SYS_linkat, SYS_listen, SYS_listxattr, SYS_llistxattr, SYS_lremovexattr, SYS_lseek, SYS_lsetxattr,
        SYS_madvise, SYS_membarrier, SYS_memfd_create, SYS_memfd_secret, SYS_mincore, SYS_mkdirat, SYS_mknodat,
        SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify,
        SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl,
        SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap,
        SYS_name_to_handle_at, SYS_nanosleep, SYS_newfstatat, SYS_openat, SYS_openat2, SYS_pidfd_open,
        SYS_pidfd_send_signal, SYS_pipe2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_ppoll,
        SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_process_mrelease, SYS_pselect6,
        SYS_ptrace, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead, SYS_readlinkat, SYS_readv,
        SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_remap_file_pages, SYS_removexattr, SYS_renameat,
        SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask,
        SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo,
        SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getattr,
        SYS_sched_getparam, SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity,
        SYS_sched_setattr, SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_semctl,
        SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,
        SYS_set_robust_list, SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups,
        SYS_setitimer, SYS_setpgid, SYS_setpriority, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid,
        SYS_setrlimit, SYS_setsid, SYS_setsockopt, SYS_setuid, SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt,
        SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd4, SYS_socketpair, SYS_splice, SYS_statfs,
        SYS_statx, SYS_symlinkat, SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_sysinfo, SYS_tee, SYS_tgkill,
        SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime,
        SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times, SYS_tkill, SYS_truncate,
        SYS_umask, SYS_uname, SYS_unlinkat, SYS_utimensat, SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write,
        SYS_writev,
    ]
};

/// The same for calls that only the oldest machines have, most of them since replaced.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_OF_OLD: &[c_long] = {
    use libc::*;
    &[
        SYS_access, SYS_alarm, SYS_arch_prctl, SYS_chmod, SYS_chown, SYS_creat, SYS_dup2, SYS_epoll_create,
        SYS_epoll_ctl_old, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_fchmodat2, SYS_fork,
        SYS_futimesat, SYS_get_thread_area, SYS_getdents, SYS_getpgrp, SYS_inotify_init, SYS_lchown, SYS_link,
        SYS_lstat, SYS_mkdir, SYS_mknod, SYS_modify_ldt, SYS_open, SYS_pause, SYS_pipe, SYS_poll, SYS_readlink,
        SYS_rename, SYS_rmdir, SYS_select, SYS_set_thread_area, SYS_signalfd, SYS_stat, SYS_symlink, SYS_time,
        SYS_unlink, SYS_utime, SYS_utimes, SYS_vfork,
    ]
};
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OF_OLD: &[c_long] = &[];

/// Newer than the library's list, with one number on every machine (`<asm-generic/unistd.h>`): cachestat, fchmodat2,
/// map_shadow_stack, futex_wake, futex_wait, futex_requeue, statmount, listmount, lsm_get_self_attr, lsm_list_modules, setxattrat,
/// getxattrat, listxattrat, removexattrat.
const ALLOWED_OF_LATE: &[c_long] = &[451, 452, 453, 454, 455, 456, 457, 458, 459, 461, 463, 464, 465, 466];

/// What comes with a capability.
const WITH_CAPABILITY: &[(CapabilitySet, &[c_long])] = &[
    (CapabilitySet::DAC_READ_SEARCH, &[libc::SYS_open_by_handle_at]),
    (
        CapabilitySet::SYS_ADMIN,
        &[
            libc::SYS_bpf,
            libc::SYS_clone,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    (CapabilitySet::SYS_BOOT, &[libc::SYS_reboot]),
    (CapabilitySet::SYS_CHROOT, &[libc::SYS_chroot]),
    (CapabilitySet::SYS_MODULE, &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (CapabilitySet::SYS_PACCT, &[libc::SYS_acct]),
    (
        CapabilitySet::SYS_PTRACE,
        &[
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
        ],
    ),
    (CapabilitySet::SYS_TIME, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (CapabilitySet::SYS_TTY_CONFIG, &[libc::SYS_vhangup]),
    (
        CapabilitySet::SYS_NICE,
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
    (CapabilitySet::SYSLOG, &[libc::SYS_syslog]),
    (CapabilitySet::BPF, &[libc::SYS_bpf]),
    (CapabilitySet::PERFMON, &[libc::SYS_perf_event_open]),
];
/// x86's ports, with the capability `SYS_RAWIO`.
#[cfg(target_arch = "x86_64")]
const RAW_IO: &[c_long] = &[libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const RAW_IO: &[c_long] = &[];

/// Flags of `clone` that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;
/// `personality`: Linux, Linux with 32-bit addresses' layout (`UNAME26`, both), and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `AF_VSOCK`: sockets to the machine this one is a guest of.
const VSOCK: u64 = 40;

/// Confines this process and all that come of it, for good. It also can no longer gain privileges (`no_new_privs`).
///
/// # Errors
/// [`RuntimeError::System`] when the kernel has no seccomp, or refuses.
pub(super) fn confine(capabilities: CapabilitySet) -> Result<(), RuntimeError> {
    let failed = |error: String| {
        RuntimeError::system("confining system calls (seccompProfile)")(std::io::Error::other(error))
    };
    for program in programs(capabilities).map_err(|error| failed(error.to_string()))? {
        apply_filter(&program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// Two filters, for the kernel heeds the stricter answer of all: what is allowed, and `clone3`, whose flags no filter can see.
/// Libraries take `clone` instead where that is said not to exist.
fn programs(capabilities: CapabilitySet) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let errno = |number: i32| SeccompAction::Errno(number.cast_unsigned());
    let allowed =
        SeccompFilter::new(rules(capabilities)?, errno(libc::EPERM), SeccompAction::Allow, machine)?;
    let mut filters = vec![allowed];
    if !capabilities.contains(CapabilitySet::SYS_ADMIN) {
        let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        filters.push(SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), machine)?);
    }
    filters.into_iter().map(BpfProgram::try_from).collect()
}

/// The allowed calls. Without rules a call is allowed whatever its arguments.
fn rules(
    capabilities: CapabilitySet,
) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let argument = |index, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
    };
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = [ALLOWED, ALLOWED_OF_OLD, ALLOWED_OF_LATE]
        .concat()
        .into_iter()
        .map(|number| (number, Vec::new()))
        .collect();
    let personalities = PERSONALITIES.map(|value| argument(0, SeccompCmpOp::Eq, value));
    rules.insert(libc::SYS_personality, personalities.into_iter().collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_socket, vec![argument(0, SeccompCmpOp::Ne, VSOCK)?]);
    rules.insert(libc::SYS_clone, vec![argument(0, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?]);
    let raw_io = (CapabilitySet::SYS_RAWIO, RAW_IO);
    for (_, numbers) in
        WITH_CAPABILITY.iter().chain([&raw_io]).filter(|(capability, _)| capabilities.contains(*capability))
    {
        rules.extend(numbers.iter().map(|number| (*number, Vec::new())));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_depends_on_capabilities() {
        let numbers = |capabilities| rules(capabilities).unwrap();
        let none = numbers(CapabilitySet::empty());
        for number in
            [libc::SYS_mount, libc::SYS_unshare, libc::SYS_keyctl, libc::SYS_bpf, libc::SYS_kexec_load]
        {
            assert!(!none.contains_key(&number), "{number}");
        }
        for number in
            [libc::SYS_read, libc::SYS_execve, libc::SYS_clone3, libc::SYS_futex, libc::SYS_setsockopt]
        {
            assert_eq!(none.get(&number).map(Vec::len), Some(0), "{number}");
        }
        assert_eq!((none[&libc::SYS_clone].len(), none[&libc::SYS_socket].len()), (1, 1));
        let admin = numbers(CapabilitySet::SYS_ADMIN);
        assert_eq!(admin[&libc::SYS_clone].len(), 0);
        assert!(admin.contains_key(&libc::SYS_mount) && !admin.contains_key(&libc::SYS_keyctl));
        assert_eq!(programs(CapabilitySet::empty()).unwrap().len(), 2);
        assert_eq!(programs(CapabilitySet::all()).unwrap().len(), 1);
    }
}
