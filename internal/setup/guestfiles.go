package setup

import (
	"os"
	"time"

	"github.com/fcvm/fcvm/internal/rootfs"
)

// rootFormat is the version of what fcvm adds to a guest root. A root of an
// older version still works, and is built anew by `fcvm setup`.
const rootFormat = 1

// guestPackages are what a guest root holds besides the minimum of a Debian.
func guestPackages() []string {
	return []string{
		"podman", "crun", "conmon", "netavark", "aardvark-dns", "fuse-overlayfs", // the container
		"iproute2", "nftables", "iptables", // its network; the netavark of Debian 12 still wants iptables
		"sshfs", "ca-certificates",
		"systemd", "systemd-sysv", "dbus", // --init systemd
	}
}

// guestPrograms must be in a guest root that comes from an image: all of the
// first, and systemd for --init systemd.
var (
	guestPrograms  = []string{"usr/bin/podman", "usr/bin/crun", "usr/bin/conmon"} //nolint:gochecknoglobals // constants
	systemdProgram = "lib/systemd/systemd"
)

// agentService starts the agent that /init has left in /run when it handed
// over to systemd.
const agentService = `[Unit]
Description=fcvm guest agent
ConditionPathExists=/run/fcvm/fc-agent

[Service]
Type=simple
ExecStart=/run/fcvm/fc-agent serve
Restart=on-failure
RestartSec=1s
KillMode=process
Delegate=yes
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity
StandardError=journal+console

[Install]
WantedBy=multi-user.target
`

// The agent passes Podman a configuration of its own; this one is for those
// who call Podman in the guest by hand, and agrees with it.
const containersConf = `# Written by fcvm: no logind session and no journal need to be there.
[containers]
log_driver = "k8s-file"

[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"

[network]
network_backend = "netavark"
`

const storageConf = `# Written by fcvm: /var/lib/containers is on the scratch disk.
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
`

const journaldConf = `[Journal]
Storage=volatile
RuntimeMaxUse=16M
`

// systemdConf: a guest is shut down by whoever waits for it.
const systemdConf = `[Manager]
DefaultTimeoutStartSec=30s
DefaultTimeoutStopSec=10s
`

// maskedUnits do nothing of use in a guest that lives as long as its
// container, and delay its boot: consoles that nobody looks at, time tables,
// what keeps a machine's state from one boot to the next.
func maskedUnits() []string {
	return []string{
		"getty.target", "getty@.service", "serial-getty@.service", "console-getty.service", "getty-static.service",
		"apt-daily.timer", "apt-daily.service", "apt-daily-upgrade.timer", "apt-daily-upgrade.service",
		"dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "man-db.timer", "motd-news.timer",
		"podman.service", "podman.socket", "podman-auto-update.service", "podman-auto-update.timer", "podman-restart.service",
		"systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-pstore.service",
		"systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
		"systemd-journal-flush.service", "systemd-binfmt.service", "systemd-repart.service", "systemd-networkd-wait-online.service",
		"systemd-resolved.service", "systemd-timesyncd.service", "systemd-hwdb-update.service",
		"systemd-ask-password-console.path", "systemd-ask-password-wall.path",
		// /init has loaded what there is to load; the root holds no modules.
		"modprobe@.service", "systemd-modules-load.service", "proc-sys-fs-binfmt_misc.automount",
		"dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	}
}

// guestFiles is what fcvm puts on top of a guest root. built is when the root
// was made.
func guestFiles(built time.Time) []rootfs.Entry {
	file := func(name, content string) rootfs.Entry {
		return rootfs.Entry{Name: name, Mode: 0o644, Content: []byte(content)}
	}
	dir := func(name string, mode os.FileMode) rootfs.Entry {
		return rootfs.Entry{Name: name, Mode: os.ModeDir | mode}
	}
	link := func(name, target string) rootfs.Entry {
		return rootfs.Entry{Name: name, Mode: os.ModeSymlink, Target: target}
	}
	const units = "etc/systemd/system/"
	entries := []rootfs.Entry{
		// What is mounted, or written by the agent, must have a place.
		dir("dev", 0o755), dir("proc", 0o555), dir("sys", 0o555), dir("run", 0o755),
		dir("tmp", 0o777|os.ModeSticky), dir("var/tmp", 0o777|os.ModeSticky), dir("var/lib/containers", 0o755), dir("root", 0o700),
		file("etc/fstab", ""),
		file("etc/machine-id", ""), // systemd makes one per boot, and takes it for no first boot
		file("etc/hostname", "localhost\n"),
		file("etc/hosts", "127.0.0.1\tlocalhost\n"),
		file("etc/resolv.conf", ""),
		file("etc/containers/containers.conf", containersConf),
		file("etc/containers/storage.conf", storageConf),
		file("etc/systemd/journald.conf.d/fcvm.conf", journaldConf),
		file("etc/systemd/system.conf.d/fcvm.conf", systemdConf),
		file(units+"fc-agent.service", agentService),
		link(units+"multi-user.target.wants/fc-agent.service", "/etc/systemd/system/fc-agent.service"),
		link(units+"default.target", "/lib/systemd/system/multi-user.target"),
	}
	for _, unit := range maskedUnits() {
		entries = append(entries, link(units+unit, "/dev/null"))
	}
	// Every boot is the first of this root. systemd would rebuild caches if
	// /usr were newer than these (ConditionNeedsUpdate in systemd.unit(5)).
	for _, name := range []string{"etc/.updated", "var/.updated"} {
		e := file(name, "")
		e.ModTime = built.Add(time.Hour)
		entries = append(entries, e)
	}
	return entries
}
