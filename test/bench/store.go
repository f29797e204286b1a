package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// store is a tree in the layout of Synapse's media_store: an upload is
// local_content/aa/bb/<20 letters>, its thumbnails are local_thumbnails/aa/bb/<20 letters>/32-32-image-png-crop and the like.
type store struct {
	path         string
	files, large int // of 8 to 64 KiB, three of four a thumbnail, and of 10 MiB
	random       *rand.Rand
}

// make fills the tree; the same numbers give the same tree. Small files of random bytes are as good as images for this.
func (s *store) make() error {
	s.random = rand.New(rand.NewPCG(20, 26))
	content := make([]byte, 10<<20)
	for i := range content {
		content[i] = byte(s.random.Uint32())
	}
	var id string
	for i := range s.files {
		size := 8<<10 + s.random.IntN(56<<10)
		from := s.random.IntN(len(content) - size)
		path := filepath.Join("local_thumbnails", id, fmt.Sprintf("%d-%d-image-png-crop", 32*i, 32*i))
		if i%4 == 0 {
			id = s.id()
			path = filepath.Join("local_content", id)
		}
		if err := s.write(path, content[from:from+size]); err != nil {
			return err
		}
	}
	for range s.large {
		if err := s.write(filepath.Join("local_content", s.id()), content); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) write(path string, content []byte) error {
	path = filepath.Join(s.path, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// id is the path of 24 letters; the first four make two levels of folders.
func (s *store) id() string {
	letters := make([]byte, 24)
	for i := range letters {
		letters[i] = byte('A' + s.random.IntN(26))
	}
	return filepath.Join(string(letters[:2]), string(letters[2:4]), string(letters[4:]))
}

// flat makes so many empty files, a thousand in a folder.
func flat(path string, files int) error {
	for i := range files {
		folder := filepath.Join(path, fmt.Sprintf("%06d", i/1000))
		if i%1000 == 0 {
			if err := os.Mkdir(folder, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("a file with a name of its own %09d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}
