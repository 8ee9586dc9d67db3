// The program of the contract page, base URL changed: it asks a server at ARK_BASE_URL and prints, line by line, the
// length of the vector and the reply as the vendor's client understands it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/volcengine/volcengine-go-sdk/service/arkruntime"
	"github.com/volcengine/volcengine-go-sdk/service/arkruntime/model"
	"github.com/volcengine/volcengine-go-sdk/volcengine"
)

func main() {
	client := arkruntime.NewClientWithApiKey(
		os.Getenv("ARK_API_KEY"),
		arkruntime.WithBaseUrl(os.Getenv("ARK_BASE_URL")),
	)
	ctx := context.Background()

	encodingFormat := model.EmbeddingEncodingFormat("float")

	req := model.MultiModalEmbeddingRequest{
		Input: []model.MultimodalEmbeddingInput{
			model.MultimodalEmbeddingInput{
				Type: "text",
				Text: volcengine.String("天很蓝，海很深"),
			},
			model.MultimodalEmbeddingInput{
				Type: "image_url",
				ImageURL: &model.MultimodalEmbeddingImageURL{
					URL: "https://ark-project.tos-cn-beijing.volces.com/images/view.jpeg",
				},
			},
		},
		Model:          "doubao-embedding-vision-250615",
		EncodingFormat: &encodingFormat,
	}

	resp, err := client.CreateMultiModalEmbeddings(ctx, req)
	if err != nil {
		fmt.Printf("multimodal embeddings error: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(len(resp.Data.Embedding))
	if err := json.NewEncoder(os.Stdout).Encode(resp); err != nil {
		fmt.Printf("the reply can't be printed: %v\n", err)
		os.Exit(1)
	}
}
