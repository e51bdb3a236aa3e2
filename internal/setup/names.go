package setup

import "time"

// Names within the directories of artifacts.
const (
	kernelFileName = "vmlinux" // also of an arm64 Image
	rootFileName   = "rootfs.ext4"
	modulesDirName = "modules"
	bootListName   = "boot.list"
	extraListName  = "extra.list"
)

const (
	idLength = 16 // hexadecimal digits of an artifact's id
	lockPoll = 100 * time.Millisecond
)
