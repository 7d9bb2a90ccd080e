"""The system calls that a sandboxed process may make: a manually reviewed list, grouped by purpose.

It allows about as much as Docker allows a container without capabilities. A call that is not listed fails with EPERM.
The reasons for omissions are given at the end, so that a gap is not taken for an oversight.

It was last compared with the default profile of moby/profiles at 02e898b (2026). Docker also allows: modify_ldt,
fanotify_mark, listmount, statmount, and obsolete calls; the *xattrat calls of Linux 6.13, which are newer than the
table here and fail with ENOSYS, so that programs use the older ones; all socket families except AF_ALG, AF_VSOCK and a
few that were removed from the kernel; socket pairs of any family; TIOCSTI and TIOCLINUX. Nothing is allowed here that
Docker refuses.
"""

FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek
    lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir
    sendfile setxattr splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink
    unlinkat utime utimensat utimes vmsplice write writev
"""
"""mknod is for pipes and sockets: a device node needs CAP_MKNOD, which no sandboxed process has."""

MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""

PROCESSES = """
    capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid getpgrp getpid getppid
    getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64
    process_mrelease sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid
    setrlimit setsid setuid vfork wait4 waitid
"""
"""Calls that change identity or priority are allowed: without capabilities, the kernel's own checks restrict them."""

THREADS = """
    futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list getcpu restart_syscall rseq
    set_robust_list set_tid_address
"""

SIGNALS = """
    pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill
"""

WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit poll ppoll pselect6 select
"""

TIME = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer
    time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime times
"""
"""adjtimex and clock_adjtime read the clock's state; setting it needs CAP_SYS_TIME."""

SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
    sendto setsockopt shutdown
"""
"""`socket` and `socketpair` depend on their first argument: see FAMILIES."""

IPC = """
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2
    semctl semget semop semtimedop shmat shmctl shmdt shmget
"""

SYSTEM = """
    arch_prctl getrandom sysinfo uname uretprobe
"""

TRACING = """
    process_vm_readv process_vm_writev ptrace
"""
"""The kernel applies the filter after a tracer has changed a call (since Linux 4.8; seccomp(2), NOTES), and the pid
namespace limits the processes that can be traced."""

ALLOWED = frozenset(
    " ".join((FILES, MEMORY, PROCESSES, THREADS, SIGNALS, WAITING, TIME, SOCKETS, IPC, SYSTEM, TRACING)).split()
)

NOT_IMPLEMENTED = frozenset({"clone3"})
"""Calls that fail with ENOSYS instead of EPERM. The flags of clone3 are behind a pointer, where a filter cannot read
them; after ENOSYS, the C library falls back to `clone`, whose flags are an argument."""

NAMESPACE_FLAGS = 0x7E020000
"""Flags that are refused to clone: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (clone(2)).
CLONE_NEWTIME shares a bit with the exit signal, and only clone3 and unshare accept it."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX and PER_LINUX32, each with and without UNAME26, and the value that only queries (personality(2)). Not
READ_IMPLIES_EXEC, and not ADDR_NO_RANDOMIZE."""
REFUSED_IOCTLS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX could type into the terminal from which the sandbox was started (ioctl_tty(2))."""
FAMILIES = (1, 2, 10, 16)
"""The allowed socket families, which servers use: AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK (for getifaddrs(3)). Docker
refuses AF_ALG (the kernel's cryptography, with a history of vulnerabilities) and AF_VSOCK (it reaches the hypervisor,
and has no namespaces), and allows about thirty others. Any user can make the kernel load the module of a family by
creating a socket or a pair, and without capabilities these families are of no use."""
PAIR_FAMILIES = (1,)
"""The families allowed for socketpair(2). It works only for AF_UNIX, but creates sockets of others before it fails."""

REFUSED = {
    "changes mounts": """chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root
        umount2""",
    "makes or enters namespaces": "setns unshare",
    "attack surface out of proportion": """bpf io_uring_enter io_uring_register io_uring_setup modify_ldt
        perf_event_open userfaultfd""",
    "not namespaced: keys of other users of the host": "add_key keyctl request_key",
    "goes around path look-up": "open_by_handle_at",
    "reads other processes' secrets": "kcmp lookup_dcookie pidfd_getfd process_madvise",
    "the whole host's": """acct clock_settime delete_module fanotify_init fanotify_mark finit_module init_module ioperm
        iopl kexec_file_load kexec_load quotactl quotactl_fd reboot setdomainname sethostname settimeofday swapoff
        swapon syslog vhangup""",
    "lists mounts and security modules": """listmount lsm_get_self_attr lsm_list_modules lsm_set_self_attr
        statmount""",
    "places memory on nodes of the host": """get_mempolicy mbind migrate_pages move_pages set_mempolicy
        set_mempolicy_home_node""",
    "obsolete, or never there in a 64-bit process": """_sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old
        get_kernel_syms get_thread_area getpmsg nfsservctl putpmsg query_module security set_thread_area sysfs tuxcall
        uselib ustat vserver""",
}
"""The reasons for refused calls. A test checks that every call of the table is allowed, checked, or listed here."""
