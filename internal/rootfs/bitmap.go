package rootfs

import (
	"encoding/binary"
	"fmt"
	"os"
)

// Offsets in ext4's superblock and its group descriptors of 32 bytes:
// https://docs.kernel.org/filesystems/ext4/globals.html
const (
	superblockAt    = 1024
	superblockSize  = 1024
	sbInodes        = 0x00
	sbInodesInGroup = 0x28
	sbMagic         = 0x38
	ext4Magic       = 0xef53
	groupDescSize   = 32
	gdInodeBitmap   = 0x04
)

// padInodeBitmaps marks what is behind the last inode of each group's bitmap
// as in use. The converter leaves it at zero, of which e2fsck complains.
func padInodeBitmaps(f *os.File) error {
	var sb [superblockSize]byte
	if _, err := f.ReadAt(sb[:], superblockAt); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	if binary.LittleEndian.Uint16(sb[sbMagic:]) != ext4Magic {
		return fmt.Errorf("read superblock: no ext4 file system was written")
	}
	inGroup := int(binary.LittleEndian.Uint32(sb[sbInodesInGroup:]))
	if inGroup == 0 || inGroup > blockSize*8 || inGroup%8 != 0 {
		return fmt.Errorf("read superblock: %d inodes per group", inGroup)
	}
	groups := int(binary.LittleEndian.Uint32(sb[sbInodes:])) / inGroup
	table := make([]byte, groups*groupDescSize)
	if _, err := f.ReadAt(table, blockSize); err != nil {
		return fmt.Errorf("read group descriptors: %w", err)
	}
	pad := make([]byte, blockSize-inGroup/8)
	for i := range pad {
		pad[i] = 0xff
	}
	for g := range groups {
		block := binary.LittleEndian.Uint32(table[g*groupDescSize+gdInodeBitmap:])
		if _, err := f.WriteAt(pad, int64(block)*blockSize+int64(inGroup/8)); err != nil {
			return fmt.Errorf("write inode bitmap: %w", err)
		}
	}
	return nil
}
